"""The published inference loop (Meta's llama, v1), whose defaults are those of arXiv 2310.03003.

It prefills up to the shortest prompt, walks the rest of the longer ones token by token, and never stops
early: every row runs to the same length, and the text is cut afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shardwatt.engine.device import OnDevice
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.finite import Finite
from shardwatt.engine.model import Transformer, load_transformer
from shardwatt.engine.protocol import (
    BatchRequest,
    BatchResult,
    Finish,
    ModelOnRank,
    OnStep,
    Phase,
    PhaseName,
    Sampling,
)
from shardwatt.engine.sampling import row_keys, sorted_next_tokens


class Reference(OnDevice):
    """The published loop over a loaded model; an `Engine`.

    What the releases do differently is in `next_logits` and `stops`.
    """

    release = "LLaMA, version 1"

    def __init__(self, model: Transformer, device: torch.device, eos_ids: frozenset[int]) -> None:
        super().__init__(device)
        self.model = model.eval()
        self.eos_ids = eos_ids
        self.finite = Finite(device, model.norm.weight.dtype)

    @torch_failures()
    @torch.inference_mode()
    def allocate(self, rows: int, positions: int) -> None:
        """Make room for batches of at most so many rows and cache positions.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: HOST_OOM.
        """
        self.model.allocate(rows, positions)

    @torch_failures()
    @torch.inference_mode()
    def generate(self, request: BatchRequest, sampling: Sampling, on_step: OnStep) -> BatchResult:
        """Answer a batch, all its prompts at once.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: NOT_FINITE, HOST_OOM, RANK_DIED or COLLECTIVE_TIMEOUT.
        """
        rows, sizes = len(request.prompts), [len(prompt) for prompt in request.prompts]
        shortest, longest = min(sizes), max(sizes)
        total = min(request.positions, longest + request.length)
        tokens, given = (part.to(self.device) for part in _laid_out(request.prompts, total))
        keys = row_keys(sampling.seed, request.prompt_ids, self.device)  # [R]
        ended = torch.zeros(rows, dtype=torch.bool, device=self.device)  # [R]

        # Each stretch of steps by the position that its first and its last step write. A step of the
        # walk feeds a token of the longest prompt; the last one writes that row's first new token.
        stretches: list[tuple[PhaseName, int, int]] = [
            ("prefill", shortest, shortest),
            ("walk", shortest + 1, longest),
            ("decode", longest + 1, total - 1),
        ]
        phases: list[Phase] = []
        self.finite.begin()
        known = steps = 0
        stopped = False
        for name, first, last in stretches:
            if first > last or stopped:
                continue
            start_s, fed_from, steps_before = self.now_s(), known, steps
            for position in range(first, last + 1):
                logits = self.next_logits(tokens[:, known:position], known)  # [R, vocab_size]
                self.finite.add(logits)
                places = torch.full_like(keys, position)  # [R]
                drawn = sorted_next_tokens(logits, sampling, keys, places)  # [R]
                tokens[:, position] = torch.where(given[:, position], tokens[:, position], drawn)
                known = position
                steps += 1
                on_step(rows)
                stopped = self.stops(tokens[:, position], given[:, position], ended)
                if stopped:
                    break
            fed = rows * (known - fed_from)
            # The token at position p attends to p + 1 positions: there is no padding.
            attended = rows * (known * (known + 1) - fed_from * (fed_from + 1)) // 2
            phases.append(Phase(name, start_s, self.now_s(), steps - steps_before, fed, attended))
        self.finite.check()
        return self._cut(request, tokens[:, : known + 1].tolist(), rows * steps, phases)

    def next_logits(self, tokens: Tensor, known: int) -> Tensor:
        """Logits of the token after the last one, [R, vocab_size], float32; tokens: [R, S], after `known`."""
        logits: Tensor = self.model(tokens, known)
        return logits

    def stops(self, written: Tensor, given: Tensor, ended: Tensor) -> bool:
        """Whether the batch is over before its length.

        Args:
            written: the token that each row holds at the position of this step, [R].
            given: True where it is the prompt's, [R].
            ended: which rows have ended so far, [R]; may be updated.
        """
        return False

    def notes(self) -> dict[str, str]:
        """How it ran, for the record."""
        return {
            "loop": f"as published with {self.release}",
            "attention": "matrix products and softmax over the cache",
            "sampling": "full sort",
        }

    def _cut(
        self, request: BatchRequest, rows: list[list[int]], generated_tokens: int, phases: list[Phase]
    ) -> BatchResult:
        """Cut each row after `length` new tokens and before the first end of sequence."""
        answers: list[list[int]] = []
        finish: list[Finish] = []
        for prompt, row in zip(request.prompts, rows, strict=True):
            new = row[len(prompt) : len(prompt) + request.length]
            end = next((place for place, token in enumerate(new) if token in self.eos_ids), None)
            if end is not None:
                finish.append("eos")
            else:
                finish.append("length" if len(new) == request.length else "context")
            answers.append(new[:end])
        return BatchResult(answers, finish, generated_tokens, phases)


def _laid_out(prompts: list[list[int]], total: int) -> tuple[Tensor, Tensor]:
    """Prompts from the left of [R, total], zeros after them; and where they are, True in the prompt."""
    tokens = torch.zeros((len(prompts), total), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt)
    sizes = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(total) < sizes[:, None]


def load(model: ModelOnRank) -> Reference:
    """Load this rank's part of a model.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER or HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    return Reference(load_transformer(model), torch.device(model.device), model.eos_ids)
