"""How the cost of inference grows: `python benchmarks/growth.py --models FOLDER`.

One axis is varied and the others stay: rows of a batch, tokens of the prompts, new tokens, shards. Engines
run in processes of their own, in turns, every other round backwards. Shards share the processors: the threads
are divided among them, so that what more shards cost is what passing data between them does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine_worker import ask_all, ranks_of
from engines import SAMPLED
from made_models import CONTEXT, SHAPES, made
from measuring import machine, positive, spread, table
from prompt_sets import batch_of
from turns import Message, Worker

_WARM_UP_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Point:
    """What is run: rows of the batch, tokens of each prompt, new tokens of each row, and ranks."""

    batch: int
    prompt: int
    new: int
    shards: int


def main() -> None:
    given = _options()
    middle = Point(given.batch, given.prompt, given.new, 1)
    points: dict[str, list[Point]] = {
        "batch": [replace(middle, batch=batch) for batch in given.batches],
        "prompt": [replace(middle, prompt=prompt) for prompt in given.prompts],
        "new": [replace(middle, new=new) for new in given.news],
        "shards": [replace(middle, shards=shards) for shards in given.shards],
    }
    axes = given.axes
    shards = sorted({point.shards for axis in axes for point in points[axis]})
    folder = made(given.models, given.model)
    with contextlib.ExitStack() as stack:
        groups = {
            (name, count): stack.enter_context(
                ranks_of(name, folder, given.precision, max(1, given.threads // count), count)
            )
            for name in given.engines
            for count in shards
        }
        found: dict[tuple[str, Point], list[Message]] = {
            (name, point): [] for axis in axes for point in points[axis] for name in given.engines
        }
        for number in range(given.rounds):
            for name, point in list(found)[:: 1 if number % 2 == 0 else -1]:
                found[name, point].append(_answer(groups[name, point.shards], point))
    print(f"{given.model}, {given.precision}, {given.threads} threads, {given.rounds} rounds;")
    print(f"else batch {middle.batch}, prompts of {middle.prompt} tokens, {middle.new} new, 1 shard.")
    print(machine("torch"), end="\n\n")
    headings = ["axis, engine", "prefill, prompt tokens/s", "decode, tokens/s", "decode step ms", "s"]
    rows = [
        [f"{axis} {getattr(point, axis)}, {name}", *_figures(found[name, point], point)]
        for axis in axes
        for point in points[axis]
        for name in given.engines
    ]
    print(table(headings, rows))
    if given.json is not None:
        results = [
            {"engine": name, **asdict(point), "rounds": rounds} for (name, point), rounds in found.items()
        ]
        given.json.write_text(json.dumps({"machine": machine("torch"), "results": results}, indent=1))


def _answer(ranks: list[Worker], point: Point) -> Message:
    """One batch, after a short one that warms up."""
    ask_all(ranks, "allocate", rows=point.batch, positions=point.prompt + point.new)
    warm_up = batch_of(point.batch, point.prompt, _WARM_UP_TOKENS)
    ask_all(ranks, "answer", requests=[warm_up], **SAMPLED)
    return ask_all(ranks, "answer", requests=[batch_of(point.batch, point.prompt, point.new)], **SAMPLED)


def _figures(rounds: list[Message], point: Point) -> list[str]:
    prefill, decode, steps = [], [], []
    for answer in rounds:
        time_s = {
            name: sum(
                phase["stop_s"] - phase["start_s"] for phase in answer["phases"] if phase["name"] == name
            )
            for name in ("prefill", "decode")
        }
        stepped = [phase for phase in answer["phases"] if phase["name"] == "decode"]
        prefill.append(point.batch * point.prompt / time_s["prefill"])
        decode.append(sum(phase["tokens"] for phase in stepped) / time_s["decode"])
        steps.append(1e3 * time_s["decode"] / sum(phase["steps"] for phase in stepped))
    return [
        spread(prefill, 0),
        spread(decode, 1),
        spread(steps, 2),
        spread([answer["wall_s"] for answer in rounds]),
    ]


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--models", type=Path, required=True, help="folder in which made models are kept")
    options.add_argument("--model", choices=SHAPES, default="110m", help="(default: 110m)")
    options.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="(default: fp32)")
    options.add_argument("--engines", nargs="+", default=["reference", "fast"])
    options.add_argument("--axes", nargs="+", choices=["batch", "prompt", "new", "shards"], default=["batch"])
    options.add_argument("--rounds", type=positive, default=3, help="times each is run (default: 3)")
    options.add_argument("--threads", type=positive, default=2, help="threads together (default: 2)")
    for name, about, value, values in (
        ("batch", "rows", 8, [1, 2, 4, 8, 16, 32, 64]),
        ("prompt", "tokens of a prompt", 64, [16, 64, 256, 1024]),
        ("new", "new tokens", 32, [16, 64, 256]),
    ):
        options.add_argument(f"--{name}", type=positive, default=value, help=f"{about} (default: {value})")
        options.add_argument(
            f"--{name}s" if name != "batch" else "--batches",
            type=positive,
            nargs="+",
            default=values,
            help=f"on their axis (default: {' '.join(map(str, values))})",
        )
    options.add_argument("--shards", type=positive, nargs="+", default=[1, 2], help="(default: 1 2)")
    options.add_argument("--json", type=Path, help="file for every round's numbers")
    given = options.parse_args()
    if max(given.prompt, *given.prompts) + max(given.new, *given.news) > CONTEXT:
        options.error(f"prompt and new tokens: expected at most {CONTEXT} together")
    if min(given.new, *given.news) < _WARM_UP_TOKENS:
        options.error(f"new tokens: expected at least {_WARM_UP_TOKENS}")
    return given


if __name__ == "__main__":
    main()
