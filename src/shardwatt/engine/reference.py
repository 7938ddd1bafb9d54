"""The published inference loop (Meta's llama, v1), whose defaults are those of arXiv 2310.03003.

It prefills up to the shortest prompt, walks the rest of the longer ones token by token, and never stops
early: every row runs to the same length, and the text is cut afterwards.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch
from torch import Tensor

from shardwatt.architectures import Architecture
from shardwatt.engine.checkpoint import load_weights
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.model import Transformer
from shardwatt.engine.protocol import BatchRequest, BatchResult, Finish, OnStep, Phase, PhaseName, Sampling
from shardwatt.engine.sampling import batch_generator, next_tokens
from shardwatt.models import Checkpoint
from shardwatt.units import GIB


class Reference:
    """The published loop over a loaded model; an `Engine`."""

    def __init__(self, model: Transformer, device: torch.device, eos_id: int) -> None:
        self.model = model.eval()
        self.device = device
        self.eos_id = eos_id

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
        """Answer a batch.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: HOST_OOM, RANK_DIED or COLLECTIVE_TIMEOUT.
        """
        prompts = request.prompts
        sizes = [len(prompt) for prompt in prompts]
        shortest, longest = min(sizes), max(sizes)
        total = min(request.positions, longest + request.length)
        tokens = torch.zeros((len(prompts), total), dtype=torch.long)  # [R, total]
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = torch.tensor(prompt)
        given = torch.arange(total) < torch.tensor(sizes)[:, None]  # [R, total], True in the prompt
        tokens, given = tokens.to(self.device), given.to(self.device)
        generator = batch_generator(sampling.seed, request.index, self.device)

        # Each stretch of steps by the position that its first and its last step write. A step of the
        # walk feeds a token of the longest prompt; the last one writes that row's first new token.
        stretches: list[tuple[PhaseName, int, int]] = [
            ("prefill", shortest, shortest),
            ("walk", shortest + 1, longest),
            ("decode", longest + 1, total - 1),
        ]
        phases = []
        steps = known = 0
        for name, first, last in stretches:
            if first > last:
                continue
            start_s = self._now()
            for position in range(first, last + 1):
                logits = self.model(tokens[:, known:position], known)  # [R, vocab_size]
                drawn = next_tokens(logits, sampling, generator)  # [R]
                tokens[:, position] = torch.where(given[:, position], tokens[:, position], drawn)
                known = position
                steps += 1
                on_step(len(prompts))
            phases.append(Phase(name, start_s, self._now()))
        return self._cut(request, tokens, steps, phases)

    def synchronize(self) -> None:
        """Wait until the device has finished all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def forget_peak_memory(self) -> None:
        """Let the peak count from now on; for processors where the kernel lets a process do so."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        # proc(5): 5 resets the peak resident set size.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_memory_gib(self) -> float:
        """Largest memory so far in GiB: allocated by torch on CUDA, resident on CPUs (VmHWM of Linux)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        # getrusage's ru_maxrss would also count what this process was before it became Python.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        lines = dict(line.split(":", 1) for line in status.splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / GIB

    def _now(self) -> float:
        self.synchronize()
        return time.monotonic()

    def _cut(self, request: BatchRequest, tokens: Tensor, steps: int, phases: list[Phase]) -> BatchResult:
        """Cut each row after `length` new tokens and before the first end of sequence."""
        answers: list[list[int]] = []
        finish: list[Finish] = []
        for prompt, row in zip(request.prompts, tokens.tolist(), strict=True):
            new = row[len(prompt) : len(prompt) + request.length]
            if self.eos_id in new:
                finish.append("eos")
                new = new[: new.index(self.eos_id)]
            else:
                finish.append("length" if len(new) == request.length else "context")
            answers.append(new)
        return BatchResult(answers, finish, steps * len(request.prompts), phases)


def load(
    *,
    architecture: Architecture,
    checkpoint: Checkpoint,
    precision: str,
    device: str,
    rank: int,
    ranks: int,
    vocab_size: int,
    eos_id: int,
) -> Reference:
    """Load this rank's part of a model; `load_engine` has the arguments.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER or HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    model = Transformer(architecture)
    load_weights(
        model,
        checkpoint,
        rank=rank,
        ranks=ranks,
        precision=precision,
        device=device,
        vocab_size=vocab_size,
    )
    return Reference(model, torch.device(device), eos_id)
