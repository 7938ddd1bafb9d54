"""`generate` of transformers over batches of prompts, timed and counted like the other engines."""

from __future__ import annotations

import hashlib

import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from shardwatt.engine.device import OnDevice
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.finite import Finite
from shardwatt.engine.hf.model import load_causal_lm
from shardwatt.engine.protocol import BatchRequest, BatchResult, Finish, ModelOnRank, OnStep, Phase, Sampling


class _Watch(StoppingCriteria):  # type: ignore[misc]  # transformers' types are not read
    """Called by `generate` after each step: counts them, notes when the first was over, and ends full rows.

    Args:
        engine: whose clock is read.
        limits: new tokens that each row may have.
        on_step: called with the number of rows.
    """

    def __init__(self, engine: HuggingFace, limits: list[int], on_step: OnStep) -> None:
        self.engine = engine
        self.rows = len(limits)
        self.on_step = on_step
        self.steps = 0
        self.prefilled_s = 0.0
        self.limits = torch.tensor(limits, device=engine.device)

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        if self.steps == 0:
            self.prefilled_s = self.engine.now_s()
        self.steps += 1
        self.on_step(self.rows)
        return self.limits <= self.steps


class _Seen(LogitsProcessor):  # type: ignore[misc]  # likewise
    """Called by `generate` with each step's logits, before temperature and top-p: are they finite?

    Those that are not are 0 afterwards: torch's draw would refuse them, and on GPUs leave no usable device.
    """

    def __init__(self, finite: Finite) -> None:
        self.finite = finite

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.finite.add(scores)
        return scores.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


class HuggingFace(OnDevice):
    """transformers' loop over a loaded model; an `Engine`.

    Its random numbers are torch's own, seeded for each batch, the same on every rank: which token a row draws
    depends on its neighbours in the batch.
    """

    def __init__(self, causal_lm: LlamaForCausalLM, model: ModelOnRank) -> None:
        super().__init__(torch.device(model.device))
        self.causal_lm = causal_lm
        self.ranks = model.ranks
        self.eos_ids = model.eos_ids
        self.finite = Finite(self.device, causal_lm.dtype)
        # A checkpoint's own defaults (repetition penalty and the like) are no part of a study.
        causal_lm.generation_config = GenerationConfig()

    def allocate(self, rows: int, positions: int) -> None:
        """Nothing: the default cache of transformers grows with each step, and goes after each batch."""

    @torch_failures()
    @torch.inference_mode()
    def generate(self, request: BatchRequest, sampling: Sampling, on_step: OnStep) -> BatchResult:
        """Answer a batch, all its prompts at once, shorter ones padded on the left.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: NOT_FINITE, HOST_OOM, RANK_DIED or COLLECTIVE_TIMEOUT.
        """
        rows, sizes = len(request.prompts), [len(prompt) for prompt in request.prompts]
        longest = max(sizes)
        # Its cache grows, so that padding takes no positions from a row.
        limits = [min(request.length, request.positions - size) for size in sizes]
        padding = min(self.eos_ids, default=0)
        tokens, mask = (part.to(self.device) for part in _padded(request.prompts, padding))
        torch.manual_seed(batch_seed(sampling.seed, request.index))
        watch = _Watch(self, limits, on_step)
        self.finite.begin()

        start_s = self.now_s()
        output = self.causal_lm.generate(
            input_ids=tokens,
            attention_mask=mask,
            generation_config=self._settings(sampling, max(limits), padding),
            logits_processor=LogitsProcessorList([_Seen(self.finite)]),
            stopping_criteria=StoppingCriteriaList([watch]),
        )
        stop_s = self.now_s()
        self.finite.check()

        # Padding goes through the model, and nothing attends to it.
        pairs = sum(size * (size + 1) // 2 for size in sizes)
        phases = [Phase("prefill", start_s, watch.prefilled_s, 1, rows * longest, pairs)]
        if more := watch.steps - 1:
            read = more * sum(sizes) + rows * more * (more + 1) // 2
            phases.append(Phase("decode", watch.prefilled_s, stop_s, more, rows * more, read))
        assert isinstance(output, Tensor)
        new = [row[:limit] for row, limit in zip(output[:, longest:].tolist(), limits, strict=True)]
        return self._cut(request, new, rows * watch.steps, phases)

    def notes(self) -> dict[str, str]:
        """How it ran, for the record."""
        return {
            "transformers": transformers.__version__,
            "class": type(self.causal_lm).__name__,
            "attention": str(self.causal_lm.config._attn_implementation),
            "dtype": str(self.causal_lm.dtype).removeprefix("torch."),
            "cache": "dynamic",
            "compiled": "no",
            "tensor_parallel": str(self.ranks),
            "randomness": "torch's generator, seeded by study seed and batch",
        }

    def _settings(self, sampling: Sampling, new_tokens: int, padding: int) -> GenerationConfig:
        if sampling.temperature == 0:
            drawing: dict[str, object] = {"do_sample": False}
        else:
            drawing = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,  # its default would keep 50 tokens
            }
        return GenerationConfig(
            max_new_tokens=new_tokens,
            eos_token_id=sorted(self.eos_ids) or None,
            pad_token_id=padding,
            **drawing,
        )

    def _cut(
        self, request: BatchRequest, rows: list[list[int]], generated_tokens: int, phases: list[Phase]
    ) -> BatchResult:
        """Cut each row before its first end of sequence; after it there is padding."""
        answers: list[list[int]] = []
        finish: list[Finish] = []
        for row in rows:
            end = next((place for place, token in enumerate(row) if token in self.eos_ids), None)
            if end is not None:
                finish.append("eos")
            else:
                finish.append("length" if len(row) == request.length else "context")
            answers.append(row[:end])
        return BatchResult(answers, finish, generated_tokens, phases)


def batch_seed(seed: int, index: int) -> int:
    """First 64 bits of SHA-256 of `seed/index`: seeds torch's generator for a batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8])


def _padded(prompts: list[list[int]], padding: int) -> tuple[Tensor, Tensor]:
    """Prompts at the right of [R, longest] with padding before them; and where they are, 1 in the prompt."""
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return tokens, mask


def open_engine(model: ModelOnRank) -> HuggingFace:
    """Load this rank's part of a model; see `shardwatt.engine.hf.load`."""
    return HuggingFace(load_causal_lm(model), model)
