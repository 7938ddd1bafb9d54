"""Whole runs over prompts of many lengths: `python benchmarks/mixed_prompts.py --models FOLDER`.

What a cell's window holds, prefill and walk included: the published loop prefills the shortest prompt of a
batch and walks the longer ones token by token, and other engines do not. Prompts are Alpaca's where
SHARDWATT_DATA has them and LLaMA's tokenizer, otherwise the project's own. Each engine takes them in its own
order and portions, in a process of its own, in turns, every other round backwards.

Models have random weights (made below FOLDER when they are not there) and end no response, unless --ends
says how many of the 32,000 ids do: with 500, responses are of some 64 tokens, and rows end one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
from pathlib import Path

from engine_worker import engine
from made_models import SHAPES, VOCABULARY, made
from measuring import machine, positive, ratios, spread, table
from prompt_sets import Mixed, mixed_prompts, requests_of
from turns import Message, Worker

SAMPLED = {"temperature": 0.8, "top_p": 0.95, "seed": 1}
_PHASES = ("prefill", "walk", "decode")
_WARM_UP_TOKENS = 3


def main() -> None:
    given = _options()
    mixed = mixed_prompts(given.prompts, given.models)
    ends = frozenset(random.Random(1).sample(range(3, VOCABULARY), given.ends))
    print(
        f"{mixed.about}; {given.length} new tokens at most, batches of {given.batch}, "
        f"{given.threads} threads, {given.rounds} rounds; median (least to most). "
        f"{given.ends} ids end a response."
    )
    print(machine("torch", "transformers"), end="\n\n")
    rows, results = [], []
    for model in given.model:
        for precision in given.precision:
            with contextlib.ExitStack() as stack:
                folder = made(given.models, model)
                workers = {
                    name: stack.enter_context(engine(name, folder, precision, given.threads, ends=ends))
                    for name in given.engines
                }
                answers = measure(workers, mixed, given.batch, given.length, given.rounds)
            rows += _rows(f"{model}, {precision}", answers)
            results.append({"model": model, "precision": precision, "answers": answers})
    headings = ["model, precision, engine", "s", f"{given.engines[0]} over it", "generated tokens/s"]
    print(table([*headings, "output tokens/s", *(f"{phase} s" for phase in _PHASES)], rows))
    if given.json is not None:
        about = {"machine": machine("torch"), "prompts": mixed.about}
        given.json.write_text(json.dumps(about | {"results": results}, indent=1))


def measure(
    workers: dict[str, Worker], mixed: Mixed, batch: int, length: int, rounds: int
) -> dict[str, list[Message]]:
    """What each engine answered in each round, after a warm-up."""
    requests = {name: requests_of(mixed, name, batch, length) for name in workers}
    for name, one in workers.items():
        positions = max(request["positions"] for request in requests[name])
        one.ask("allocate", rows=min(batch, len(mixed.ids)), positions=positions)
        first = requests[name][0]
        short = first | {
            "prompts": first["prompts"][: first["rows"]],
            "prompt_ids": first["prompt_ids"][: first["rows"]],
            "length": _WARM_UP_TOKENS,
        }
        one.ask("answer", requests=[short], **SAMPLED)
    answers: dict[str, list[Message]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in list(workers) if number % 2 == 0 else reversed(list(workers)):
            answers[name].append(workers[name].ask("answer", requests=requests[name], **SAMPLED))
    return answers


def _rows(what: str, answers: dict[str, list[Message]]) -> list[list[str]]:
    times = {name: [answer["wall_s"] for answer in found] for name, found in answers.items()}
    beside = next(iter(times))
    rows = []
    for name, found in answers.items():
        rows.append(
            [
                f"{what}, {name}",
                spread(times[name]),
                "" if name == beside else spread(ratios(times[beside], times[name])),
                *(
                    spread([answer[kind] / answer["wall_s"] for answer in found], 1)
                    for kind in ("generated_tokens", "output_tokens")
                ),
                *(spread([_seconds(answer, phase) for answer in found]) for phase in _PHASES),
            ]
        )
    return rows


def _seconds(answer: Message, name: str) -> float:
    return float(
        sum(phase["stop_s"] - phase["start_s"] for phase in answer["phases"] if phase["name"] == name)
    )


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--models", type=Path, required=True, help="folder in which made models are kept")
    options.add_argument("--model", nargs="+", choices=SHAPES, default=["110m"], help="(default: 110m)")
    options.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    options.add_argument("--rounds", type=positive, default=3, help="times each is run (default: 3)")
    options.add_argument("--prompts", type=positive, default=96, help="prompts of a run (default: 96)")
    options.add_argument("--batch", type=positive, default=32, help="prompts at a time (default: 32)")
    options.add_argument("--length", type=positive, default=64, help="new tokens at most (default: 64)")
    options.add_argument("--ends", type=int, default=0, help="ids that end a response (default: 0)")
    options.add_argument("--threads", type=positive, default=2, help="threads of an engine (default: 2)")
    options.add_argument(
        "--engines",
        nargs="+",
        default=["reference", "hf", "fast", "fast-refill"],
        help="engines; the others are set beside the first (default: reference hf fast fast-refill)",
    )
    options.add_argument("--json", type=Path, help="file for every round's numbers")
    return options.parse_args()


if __name__ == "__main__":
    main()
