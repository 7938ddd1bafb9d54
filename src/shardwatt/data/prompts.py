"""Prompts: a data set's file parsed, put into its published template, and sampled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardwatt.data.fetch import DataError, read_verified
from shardwatt.datasets import Dataset

#: The two templates of the Alpaca project, word for word, since results are comparable only with the same
#: tokens: README.md and PROMPT_DICT in train.py of tatsu-lab/stanford_alpaca. An entry whose input is not
#: the empty string gets the first one; the response follows after the last colon.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)

#: GSM8K publishes questions and answers but no template, and arXiv 2310.03003 does not say which it used.
#: This is the one of the task `gsm8k` in EleutherAI's lm-evaluation-harness, without worked examples.
GSM8K = "Question: {question}\nAnswer:"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a data set.

    Attributes:
        id: its position in the file, counted from 0, as text.
        text: what the model is given, template included.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Example:
    """An entry of a data set.

    Attributes:
        prompt: what a model is given, template included.
        answer: what the data set offers as the response.
    """

    prompt: str
    answer: str


def load_prompts(name: str, dataset: Dataset, path: Path) -> list[Prompt]:
    """Read all prompts of a data set, in the order of its file; the file's hash is checked first.

    Args:
        name: the data set's name, for messages.
        dataset: its format and expected hash.
        path: where its file lies.

    Raises:
        DataError: the file is missing, of another content, malformed or without an entry.
    """
    examples = load_examples(name, dataset, path)
    return [Prompt(str(position), example.prompt) for position, example in enumerate(examples)]


def load_examples(name: str, dataset: Dataset, path: Path) -> list[Example]:
    """Read all entries of a data set with their answers; otherwise as `load_prompts`.

    Raises:
        DataError: the file is missing, of another content, malformed or without an entry.
    """
    where = f"data set '{name}': {path}"
    try:
        text = read_verified(dataset, path).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise DataError(f"{where}: is no UTF-8 text, from byte {problem.start} on") from None
    entries = _alpaca(text, where) if dataset.format == "alpaca" else _gsm8k(text, where)
    examples = list(entries)
    if not examples:
        raise DataError(f"{where}: is empty; expected at least one entry")
    return examples


def sample_prompts(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """Draw prompts without replacement, in random order.

    They are ordered by the SHA-256 of `SEED:ID` and the first ones are taken, so that a sample is the same
    on every machine and with every library version, and a smaller sample is the start of a larger one.

    Args:
        prompts: the data set's prompts.
        count: how many to draw.
        seed: which sample.

    Raises:
        DataError: more are asked for than there are.
    """
    if count > len(prompts):
        raise DataError(
            f"prompts: {count} asked for, and the data set has {len(prompts)}; "
            f"expected at most {len(prompts)}: lower `prompts` in the study, or name a larger data set"
        )
    return sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed}:{prompt.id}".encode()).digest())[:count]


def _alpaca(text: str, where: str) -> Iterator[Example]:
    try:
        entries = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as problem:
        raise DataError(f"{where}: no valid JSON: {problem}") from None
    if not isinstance(entries, list):
        raise DataError(f"{where}: expected a JSON list of entries, found {_kind(entries)}")
    for number, entry in enumerate(entries, start=1):
        at = f"{where}, entry {number}"
        instruction = _text(entry, "instruction", at)
        further = _text(entry, "input", at, default="")
        template = ALPACA_WITH_INPUT if further else ALPACA_WITHOUT_INPUT
        yield Example(
            template.format(instruction=instruction, input=further), _text(entry, "output", at, blank=True)
        )


def _gsm8k(text: str, where: str) -> Iterator[Example]:
    # Not splitlines: it also breaks at characters that JSON strings may hold, such as U+2028.
    lines = text.rstrip().split("\n") if text.strip() else []
    for number, line in enumerate(lines, start=1):
        at = f"{where}, line {number}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise DataError(f"{at}: no valid JSON: {problem}") from None
        yield Example(
            GSM8K.format(question=_text(entry, "question", at)), _text(entry, "answer", at, blank=True)
        )


def _text(entry: object, key: str, at: str, *, default: str | None = None, blank: bool = False) -> str:
    """Take a text out of an entry; one that has a default may be missing or blank."""
    if not isinstance(entry, dict):
        raise DataError(f"{at}: expected a JSON object, found {_kind(entry)}")
    value = entry.get(key, default)
    if not isinstance(value, str):
        found = f"found {_kind(value)}" if key in entry else "it is missing"
        raise DataError(f"{at}: '{key}': expected a text, {found}")
    if not value.strip() and default is None and not blank:
        raise DataError(f"{at}: '{key}': is empty; expected a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{at}: '{key}': holds half of a surrogate pair, which is no character") from None
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
