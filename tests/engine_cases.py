"""What the tests of correctness let every engine compute, in one process or as ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoints_tiny
import engine_tiny
from shardwatt.engine.fast.loop import Fast
from shardwatt.engine.fast.packing import packed
from shardwatt.engine.load import load_engine
from shardwatt.engine.parallel import Ranks
from shardwatt.engine.protocol import Engine, Sampling
from shardwatt.engine.reference import Reference
from shardwatt.engine.sampling import row_keys, sorted_next_tokens
from shardwatt.engine.sampling.published import in_nucleus
from shardwatt.engines import ENGINES
from shardwatt.models import Checkpoint, Layout

#: Rows of the same length, of which logits are compared position by position.
TOKENS = torch.randint(3, 320, (2, 24), generator=torch.Generator().manual_seed(5))

#: Rows of mixed lengths, which are answered.
PROMPTS = [[1, 7, 9, 250, 33], [1, 40, 41], [1, 5, 80, 81, 82, 83, 84, 11], [1, 300, 6, 17, 77, 13]]
POSITIONS = 64

GREEDY = Sampling(temperature=0, top_p=1, seed=0)
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=11)


@dataclass(frozen=True, slots=True)
class Case:
    """A tiny checkpoint: its kind, whose layout, and in how many files it is saved."""

    kind: checkpoints_tiny.Kind
    layout: Layout
    saved: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.layout}-{self.saved}"

    def write(self, root: Path) -> Checkpoint:
        return checkpoints_tiny.tiny(root / self.name, self.kind, self.layout, self.saved)[0]

    def written(self, root: Path, weights: Iterable[str]) -> Checkpoint:
        """What another process wrote; weights: names of the files."""
        folder = root / self.name
        return Checkpoint(folder, folder / "tokenizer", self.layout, tuple(weights))


def opened(
    name: str,
    checkpoint: Checkpoint,
    kind: checkpoints_tiny.Kind,
    *,
    precision: str = "fp32",
    rank: int = 0,
    ranks: int = 1,
    eos_ids: Iterable[int] = (),
) -> Engine:
    """An engine with a tiny checkpoint, and room for all that is asked here."""
    shape = checkpoints_tiny.SHAPES[kind]
    model = engine_tiny.on_rank(
        checkpoint, shape, precision=precision, rank=rank, ranks=ranks, eos_ids=frozenset(eos_ids)
    )
    engine = load_engine(name, model)
    engine.allocate(len(PROMPTS), POSITIONS)
    return engine


@torch.inference_mode()
def logits_of(engine: Engine, tokens: Tensor) -> Tensor:
    """Logits after each of tokens [R, S] as a prefill makes them, [R, S, vocab_size], float32."""
    if isinstance(engine, Reference):
        return engine.model.logits(tokens, 0)
    if isinstance(engine, Fast):
        # It makes those of the last token alone: so every beginning of a row is a prompt.
        beginnings = [row[: stop + 1] for row in tokens.tolist() for stop in range(len(row))]
        engine.allocate(len(beginnings), tokens.shape[1])
        after = engine.model.prefill(packed(beginnings, range(len(beginnings)), engine.device))
        engine.allocate(len(PROMPTS), POSITIONS)
        return after.view(*tokens.shape, -1)
    from shardwatt.engine.hf.generate import HuggingFace  # importing transformers takes seconds

    assert isinstance(engine, HuggingFace)
    logits: Tensor = engine.causal_lm(tokens).logits
    return logits.float()


@torch.inference_mode()
def stepped_logits_of(engine: Engine, tokens: Tensor) -> Tensor:
    """Logits after each of tokens [R, S], taken in one by one, [R, S, vocab_size], float32."""
    rows, count = tokens.shape
    if isinstance(engine, Reference):
        steps = [engine.model(tokens[:, place : place + 1], place) for place in range(count)]
    else:
        assert isinstance(engine, Fast)
        first = packed(tokens[:, :1].tolist(), range(rows), engine.device)
        steps = [engine.model.prefill(first)]
        for place in range(1, count):
            positions = torch.full((rows,), place, device=engine.device)
            steps.append(engine.model.step(tokens[:, place].clone(), positions, place + 1))
    return torch.stack(steps, dim=1)


def answers(engine: Engine, name: str, sampling: Sampling, count: int, length: int) -> list[list[int]]:
    """What an engine makes of so many PROMPTS; where it fills places anew, there are fewer than prompts."""
    rows = count // 2 if ENGINES[name].queue else count
    request = engine_tiny.ask(PROMPTS[:count], length, POSITIONS, rows=rows)
    return engine.generate(request, sampling, lambda count: None).tokens


def off(logits: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest logit."""
    return float((logits - exact).abs().max() / exact.abs().max())


def first_difference(one: list[int], other: list[int]) -> int | None:
    """Place of the first token that is not the same, the end being one more; None where there is none."""
    if one == other:
        return None
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def top_two_apart(
    logits_after: Callable[[Tensor], Tensor], prompt: list[int], text: list[int]
) -> list[float]:
    """Over the largest logit, how far the two likeliest tokens are apart at each of a text and at its end.

    Args:
        logits_after: of tokens [R, S], [R, S, vocab_size].
        prompt: what the text goes on with.
        text: greedy.
    """
    logits = logits_after(torch.tensor([prompt + text]))[0, len(prompt) - 1 :]  # [tokens + 1, vocab_size]
    first, second = logits.topk(2).values.unbind(-1)
    gaps: list[float] = ((first - second) / logits.abs().max()).tolist()
    return gaps


def drawn(logits: Tensor, repeats: int) -> Tensor:
    """Tokens sampled at every place of logits [R, S, vocab_size] with several keys each, [repeats, R, S]."""
    rows, places, _ = logits.shape
    seeds = [row_keys(seed, [f"row {row}" for row in range(rows)], "cpu") for seed in range(repeats)]
    keys = torch.stack(seeds)[:, :, None].expand(-1, -1, places)  # [repeats, R, S]
    positions = torch.arange(places).expand_as(keys)
    everywhere = logits.expand(repeats, -1, -1, -1).flatten(0, 2)
    tokens = sorted_next_tokens(everywhere, SAMPLED, keys.flatten(), positions.flatten())
    return tokens.view(keys.shape)


def expected_to_differ(logits: Tensor, exact: Tensor, repeats: int) -> float:
    """How many of the tokens `drawn` from two sets of logits differ on average, for the noise between them.

    Tokens race: that of probability p arrives after an exponential time over p, the same time for both
    sets. So i wins in both with the chance 1 / sum over j of max(p_j / p_i, q_j / q_i): each other token's
    time has to be later than i's by both. What is left to 1 is the chance that the two draws differ.
    """
    chance = 0.0
    for p, q in zip(_nucleus(exact), _nucleus(logits), strict=True):
        both = ((p > 0) & (q > 0)).nonzero().squeeze(-1)
        later = torch.maximum(p / p[both, None], q / q[both, None]).sum(dim=-1)
        chance += 1 - float((1 / later).sum())
    return repeats * max(chance, 0.0)


def at_most(mean: float) -> float:
    """Five deviations above the mean of a count of rare, independent events (Poisson's), and one more."""
    return mean + 5 * math.sqrt(mean) + 1


def _nucleus(logits: Tensor) -> Tensor:
    """Probabilities at each place of logits [R, S, V], 0 outside the nucleus; [R x S, V]."""
    falling, ids = torch.softmax(logits.flatten(0, 1) / SAMPLED.temperature, dim=-1).sort(descending=True)
    kept = (falling * in_nucleus(falling, SAMPLED.top_p)).double()
    return torch.zeros_like(kept).scatter_(1, ids, kept / kept.sum(dim=-1, keepdim=True))


def compute(group: Ranks, options: dict[str, Any]) -> dict[str, Any]:
    """As one of several ranks: logits of TOKENS into a file of rank 0, and answers, by engine and case."""
    report = {}
    for words in options["cases"]:
        case = Case(words["kind"], words["layout"], words["saved"])
        checkpoint = case.written(Path(options["root"]), words["weights"])
        for name in options["engines"]:
            engine = opened(name, checkpoint, case.kind, rank=group.rank, ranks=group.count)
            logits = logits_of(engine, TOKENS)
            greedy = answers(engine, name, GREEDY, *options["asked"])
            sampled = answers(engine, name, SAMPLED, *options["asked"])
            if group.rank == 0:
                torch.save(logits, Path(options["root"]) / f"{case.name}-{name}.pt")
            report[f"{case.name}-{name}"] = {
                "greedy": greedy,
                "sampled": sampled,
                "same_logits": group.all_agree(str(logits.tolist())),
                "same_greedy": group.all_agree(repr(greedy)),
                "same_sampled": group.all_agree(repr(sampled)),
            }
    return report
