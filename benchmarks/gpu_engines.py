"""The engines on one NVIDIA GPU beside its bandwidth: `python benchmarks/gpu_engines.py --models FOLDER`.

LLaMA-shaped models of random weights answer random prompts with every engine, in as large batches as the
memory plan says that they fit. An engine is loaded anew in each round, in a process of its own, so that it
has the GPU's memory for itself; every other round goes backwards, and in each the bandwidth is measured too.
Prints Markdown tables.

It was written without a GPU at hand and has run on a processor alone (`--device cpu --names tiny`): no figure
of a GPU has been taken with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engines import Decode, decode_of
from gpu_worker import WARM_UP, on_device
from measuring import machine, positive, ratios, spread, table
from repeated_layers import SHAPES, made
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.engines import MODEL_ENGINES
from shardwatt.modelwork import Work, moved_bytes
from shardwatt.plan.memory import memory_need
from turns import Message

#: Tokens of LLaMA 3.
LLAMA3_VOCABULARY = 128_256


@dataclass(frozen=True, slots=True)
class Answered:
    """One batch of an engine in a round: decode, the prefill's time in s, and peak memory in GiB."""

    decode: Decode
    prefill_s: float
    peak_gib: float


@dataclass(slots=True)
class Round:
    """One round of a model: what each engine did with each batch that fits, and what is beside it.

    Attributes:
        bandwidth: of the device.
        drawing_ms: time to draw a token for each row, by rows and size of the vocabulary.
        answers: by tokens of a prompt, rows and engine.
    """

    bandwidth: Message
    drawing_ms: dict[tuple[int, int], float]
    answers: dict[tuple[int, int, str], Answered] = field(default_factory=dict)


class Measurement:
    """Rounds of one model on a device, as the options say."""

    def __init__(self, name: str, memory_gib: float, given: argparse.Namespace) -> None:
        self.name, self.memory_gib, self.given = name, memory_gib, given
        self.shape = SHAPES[name]
        self.folder = made(given.models, name)
        self.rounds: list[Round] = []
        self.notes: dict[str, Message] = {}

    def planned_gib(self, engine: str, prompt: int, rows: int) -> float:
        """What the plan says that an engine needs for a batch."""
        return memory_need(
            self.shape,
            precision=self.given.precision,
            shards=1,
            batch=rows,
            length=self.given.new,
            cache_tokens=prompt + self.given.new,
            engine=engine,
        ).total_gib

    def run(self) -> None:
        """Take one more round, in the other order than the last."""
        order = self.given.engines if len(self.rounds) % 2 == 0 else self.given.engines[::-1]
        with on_device(self.given.device) as one:
            drawing_ms = {
                (rows, size): one.ask("drawing", rows=rows, vocab_size=size)["ms"]
                for rows in self.given.batches
                for size in vocabularies(self.name)
            }
            self.rounds.append(Round(one.ask("bandwidth"), drawing_ms))
        for engine in order:
            batches = [
                (prompt, rows)
                for prompt in self.given.prompt
                for rows in self.given.batches
                if self.planned_gib(engine, prompt, rows) <= self.memory_gib
            ]
            if batches:
                self._answer(engine, batches)

    def _answer(self, engine: str, batches: list[tuple[int, int]]) -> None:
        with on_device(self.given.device) as one:
            loaded = one.ask("load", engine=engine, folder=str(self.folder), precision=self.given.precision)
            if "does_not_fit" in loaded:
                return
            for prompt, rows in batches:
                answer = one.ask("answer", rows=rows, prompt=prompt, new=self.given.new)
                if "does_not_fit" not in answer:
                    prefills = [p for p in answer["phases"] if p["name"] == "prefill"]
                    prefill_s = sum(p["stop_s"] - p["start_s"] for p in prefills)
                    found = Answered(decode_of(answer), prefill_s, answer["peak_gib"])
                    self.rounds[-1].answers[prompt, rows, engine] = found
                    print(f"{self.name}, {prompt}, {rows}, {engine}: {found}", file=sys.stderr)
            self.notes[engine] = one.ask("notes")

    def row(self, prompt: int, rows: int, engine: str) -> list[str]:
        """A line of the table, as `headings` says."""
        answers = self._answers(prompt, rows, engine)
        planned_gib = self.planned_gib(engine, prompt, rows)
        title = f"{self.name}, {prompt}, {rows}, {engine}"
        if not answers:
            why = "planned not to fit" if planned_gib > self.memory_gib else "did not fit"
            return [title, why, *[""] * (len(headings(self.given)) - 3), f"{planned_gib:.1f}"]
        speeds = [one.decode.tokens_per_s for one in answers]
        beside = [one.decode.tokens_per_s for one in self._answers(prompt, rows, self.given.engines[0])]
        moved = [self._moved_gb_s(one.decode) for one in answers]
        line = [
            title,
            spread(speeds, 1),
            spread(ratios(speeds, beside)) if len(beside) == len(speeds) else "",
            spread([one.decode.step_ms for one in answers]),
            spread(moved, 1),
            spread(ratios(moved, [one.bandwidth["read_gb_s"] for one in self.rounds])),
        ]
        if self.given.data_sheet is not None:
            peak_gb_s = DATA_SHEETS[self.given.data_sheet].memory_bandwidth_b_s / 1e9
            line.append(spread([rate / peak_gb_s for rate in moved]))
        return [
            *line,
            spread([rows * prompt / one.prefill_s for one in answers], 0),
            f"{max(one.peak_gib for one in answers):.1f}",
            f"{planned_gib:.1f}",
        ]

    def drawing(self) -> list[list[str]]:
        """Lines of the table of drawing: model, rows and vocabulary, and the time in ms."""
        return [
            [f"{self.name}, {rows}, {size}", spread([one.drawing_ms[rows, size] for one in self.rounds], 3)]
            for rows, size in self.rounds[0].drawing_ms
        ]

    def _answers(self, prompt: int, rows: int, engine: str) -> list[Answered]:
        """Of every round; none where one did not fit."""
        key = prompt, rows, engine
        found = [one.answers[key] for one in self.rounds if key in one.answers]
        return found if len(found) == len(self.rounds) else []

    def _moved_gb_s(self, decode: Decode) -> float:
        """Weights and valid keys and values of the steps over their time, in 1e9 bytes/s."""
        work = Work(decode.tokens, decode.tokens, decode.attended)
        moved = moved_bytes(self.shape, work, steps=decode.steps, precision=self.given.precision, shards=1)
        return moved / 1e9 / decode.duration_s


def vocabularies(name: str) -> list[int]:
    """Sizes of vocabularies from which tokens are drawn: the model's own, and LLaMA 3's."""
    return sorted({SHAPES[name].vocab_size, LLAMA3_VOCABULARY})


def headings(given: argparse.Namespace) -> list[str]:
    """Of the table of engines."""
    return [
        "model, prompt, batch, engine",
        "decode tokens/s",
        f"over {given.engines[0]}",
        "step ms",
        "GB/s",
        "of the read bandwidth (median)",
        *([f"of the data sheet's ({given.data_sheet})"] if given.data_sheet else []),
        "prefill tokens/s",
        "peak GiB",
        "planned GiB",
    ]


def main() -> None:
    given = _options()
    with on_device(given.device) as one:
        device = one.ask("describe")
    models = [Measurement(name, device["memory_gib"], given) for name in given.names]
    for model in models:
        for _ in range(given.rounds):
            model.run()
    print(f"{device['name']}, {device['memory_gib']:.1f} GiB; {given.precision}; {given.rounds} rounds.")
    print(f"Prompts of so many tokens, {given.new} new ones, temperature 0.8, top-p 0.95.")
    print("Median (least to most) of the rounds; a ratio is of two figures of the same round.")
    print(machine("torch", "transformers"), end="\n\n")
    lines = [
        model.row(prompt, rows, name)
        for model in models
        for prompt in given.prompt
        for rows in given.batches
        for name in given.engines
    ]
    print(table(headings(given), lines), end="\n\n")
    print("Drawing tokens, which a step of engine `fast` holds:", end="\n\n")
    drawn = [line for model in models for line in model.drawing()]
    print(table(["model, batch, vocabulary", "ms"], drawn), end="\n\n")
    kernels = [one.bandwidth["kernels"] for model in models for one in model.rounds]
    rates = [
        [name, *(spread([one[name][which] for one in kernels], 0) for which in ("median", "fastest"))]
        for name in kernels[0]
    ]
    titles = ["kernel, over 4 GiB or a quarter of what is free", "median GB/s", "fastest GB/s"]
    print(table(titles, rates), end="\n\n")
    notes = {f"{model.name}, {name}": note for model in models for name, note in model.notes.items()}
    print("\n".join(f"- {name}: {json.dumps(note)}" for name, note in notes.items()))


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--models", type=Path, required=True, help="folder in which made models are kept")
    options.add_argument("--device", default="cuda:0", help="default: cuda:0; cpu to try the script itself")
    options.add_argument(
        "--names",
        nargs="+",
        choices=list(SHAPES),
        default=["llama-7b", "llama-13b", "llama-65b"],
        help="models (default: llama-7b llama-13b llama-65b)",
    )
    options.add_argument(
        "--engines",
        nargs="+",
        choices=list(MODEL_ENGINES),
        default=["reference", "hf", "fast"],
        help="engines; the first is what others are set over (default: reference hf fast)",
    )
    options.add_argument(
        "--batches", nargs="+", type=positive, default=[1, 8, 64], help="rows (default: 1 8 64)"
    )
    options.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="bf16")
    options.add_argument(
        "--prompt",
        nargs="+",
        type=positive,
        default=[128, 1800],
        help="tokens of a prompt (default: 128 1800)",
    )
    options.add_argument("--new", type=positive, default=128, help="new tokens (default: 128)")
    options.add_argument("--rounds", type=positive, default=3, help="times each is run (default: 3)")
    options.add_argument("--data-sheet", choices=list(DATA_SHEETS), help="of the GPU, e.g. a100-sxm-80gb")
    given = options.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        options.error("torch sees no GPU here; expected an NVIDIA GPU, and torch built for CUDA")
    if given.new <= WARM_UP:
        options.error(f"--new {given.new}: expected more than {WARM_UP}, the warm-up")
    return given


if __name__ == "__main__":
    main()
