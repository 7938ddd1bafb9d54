"""Decode speed of the engines side by side: `python benchmarks/engines.py --models FOLDER`.

Each engine is loaded in a process of its own through shardwatt's own loader and answers the same batches of
random prompts through the protocol, in turns, every other round backwards; only one computes at a time.
Between them the read bandwidth of the machine is measured with the same threads. Decode steps alone are
timed, sampling included. What sampling takes is given apart: the time of a step less that of one at
temperature 0, which takes the likeliest token, in the same round.

Models are made below FOLDER when they are not there. One cell: --part 110m bf16 8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from engine_worker import engine
from made_models import SHAPES, architecture, made
from measuring import machine, positive, ratios, spread, table
from prompt_sets import batch_of
from read_bandwidth import bandwidth
from shardwatt.modelwork import Work, moved_bytes
from turns import Message, Worker

PRECISIONS = ("fp32", "bf16")
BATCHES = (1, 8, 64)

#: The published sampling.
SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 1}
GREEDY = SAMPLED | {"temperature": 0.0}

_WARM_UP = 3


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode of one batch: time in s, steps, tokens, and the cache positions that were attended to."""

    duration_s: float
    steps: int
    tokens: int
    attended: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all rows."""
        return self.tokens / self.duration_s

    @property
    def step_ms(self) -> float:
        """Time of a step."""
        return 1e3 * self.duration_s / self.steps

    def gb_s(self, model: str, precision: str) -> float:
        """Weights and valid keys and values of a step over its time, in 1e9 bytes/s."""
        work = Work(self.tokens, self.tokens, self.attended)
        moved = moved_bytes(architecture(model), work, steps=self.steps, precision=precision, shards=1)
        return moved / 1e9 / self.duration_s


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a cell: of each engine decode as published and at temperature 0, and the bandwidth."""

    sampled: dict[str, Decode]
    greedy: dict[str, Decode]
    read_gb_s: float


def decode_of(answer: Message) -> Decode:
    """Decode phases of an answer together."""
    phases = [phase for phase in answer["phases"] if phase["name"] == "decode"]
    return Decode(
        sum(phase["stop_s"] - phase["start_s"] for phase in phases),
        sum(phase["steps"] for phase in phases),
        sum(phase["tokens"] for phase in phases),
        sum(phase["attended"] for phase in phases),
    )


def main() -> None:
    given = _options()
    print(f"{given.rounds} rounds, prompts of {given.prompt} tokens, {given.threads} threads.")
    print("Median (least to most) of the rounds; a ratio is of two sides of the same round.")
    print(machine("torch", "transformers"), end="\n\n")
    results: list[dict[str, object]] = []
    rows: list[list[str]] = []
    for model in given.models_named:
        folder = made(given.models, model)
        for precision in given.precisions:
            with loaded(given.engines, folder, precision, given.threads) as workers:
                with bandwidth(given.threads) as reader:
                    for batch in given.batches:
                        rounds = measure(workers, reader, batch, given)
                        rows += _rows(model, precision, batch, rounds, given.engines)
                        cell = {"model": model, "precision": precision, "batch": batch}
                        results.append(cell | {"rounds": [asdict(one) for one in rounds]})
                        print(
                            "\n".join(" | ".join(row) for row in rows[-len(given.engines) :]), file=sys.stderr
                        )
                notes = {name: one.ask("notes") for name, one in workers.items()}
                results.append({"model": model, "precision": precision, "notes": notes})
    print(table(_headings(given.engines[-1]), rows))
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": machine("torch"), "results": results}, indent=1))


@contextlib.contextmanager
def loaded(names: list[str], folder: Path, precision: str, threads: int) -> Iterator[dict[str, Worker]]:
    """The engines of those names, each loaded in a process of its own, one after the other."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(engine(name, folder, precision, threads)) for name in names}


def measure(
    workers: Mapping[str, Worker], reader: Worker, batch: int, given: argparse.Namespace
) -> list[Round]:
    """Rounds of one cell, after a warm-up of each engine."""
    for one in workers.values():
        one.ask("allocate", rows=batch, positions=given.prompt + given.new)
        one.ask("answer", requests=[batch_of(batch, given.prompt, _WARM_UP)], **SAMPLED)
    request = batch_of(batch, given.prompt, given.new)
    rounds = []
    for number in range(given.rounds):
        order = list(workers)[:: 1 if number % 2 == 0 else -1]
        found: list[dict[str, Decode]] = []
        for drawing in (SAMPLED, GREEDY):
            answers = {name: workers[name].ask("answer", requests=[request], **drawing) for name in order}
            found.append({name: decode_of(answer) for name, answer in answers.items()})
        rounds.append(Round(found[0], found[1], reader.ask("read")["gb_s"]))
    return rounds


def _headings(last: str) -> list[str]:
    return [
        "model, precision, batch, engine",
        "tokens/s",
        f"{last} over it",
        "step ms",
        "of it sampling",
        "GB/s",
        "of the read bandwidth",
    ]


def _rows(model: str, precision: str, batch: int, rounds: list[Round], names: list[str]) -> list[list[str]]:
    speeds = {name: [one.sampled[name].tokens_per_s for one in rounds] for name in names}
    rows = []
    for name in names:
        moved = [one.sampled[name].gb_s(model, precision) for one in rounds]
        sampling = [one.sampled[name].step_ms - one.greedy[name].step_ms for one in rounds]
        rows.append(
            [
                f"{model}, {precision}, {batch}, {name}",
                spread(speeds[name], 1),
                "" if name == names[-1] else spread(ratios(speeds[names[-1]], speeds[name])),
                spread([one.sampled[name].step_ms for one in rounds]),
                f"{statistics.median(sampling):.2f}",
                spread(moved, 1),
                spread(ratios(moved, [one.read_gb_s for one in rounds])),
            ]
        )
    return rows


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--models", type=Path, required=True, help="folder in which made models are kept")
    options.add_argument("--rounds", type=positive, default=7, help="times each is run (default: 7)")
    options.add_argument("--prompt", type=positive, default=64, help="tokens of a prompt (default: 64)")
    options.add_argument("--new", type=positive, default=64, help="new tokens (default: 64)")
    options.add_argument("--threads", type=positive, default=2, help="threads of an engine (default: 2)")
    options.add_argument(
        "--engines",
        nargs="+",
        default=["reference", "hf", "fast"],
        help="engines; the last one is set over the others (default: reference hf fast)",
    )
    options.add_argument(
        "--part",
        nargs=3,
        metavar=("MODEL", "PRECISION", "BATCH"),
        default=("all", "all", "all"),
        help="one cell, e.g. 110m bf16 8; `all` takes all of an axis (default: all all all);\n"
        f"models: {', '.join(SHAPES)}",
    )
    options.add_argument("--json", type=Path, help="file for every round's numbers")
    given = options.parse_args()
    if given.new < _WARM_UP:
        options.error(f"--new {given.new}: expected at least {_WARM_UP}")
    model, precision, batch = given.part
    given.models_named = list(SHAPES) if model == "all" else [model]
    given.precisions = list(PRECISIONS) if precision == "all" else [precision]
    given.batches = list(BATCHES) if batch == "all" else [positive(batch)]
    if unknown := set(given.models_named) - set(SHAPES):
        options.error(f"unknown model {', '.join(unknown)}; expected {', '.join(SHAPES)}")
    return given


if __name__ == "__main__":
    main()
