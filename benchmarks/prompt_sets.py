"""Prompts of one length, and prompts of many lengths as studies have them, in the batches of a cell."""

from __future__ import annotations

import os
import random
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from made_models import CONTEXT, VOCABULARY
from measuring import ROOT
from shardwatt.cell import Cell
from shardwatt.data.prompts import load_prompts, sample_prompts
from shardwatt.data.tokenizer import open_tokenizer
from shardwatt.datasets import load_catalogue
from shardwatt.engine.protocol import BatchRequest
from shardwatt.prepare import make_tokenizer
from shardwatt.run.batches import plan_batches
from shardwatt.site import load_site
from turns import Message

#: Ids below are control pieces and bytes in LLaMA's vocabulary.
_FIRST_PIECE = 259
_SEED = 2023

#: The data set and the tokenizer of config/datasets.yaml that are used where the data folder has them.
_REAL = ("alpaca-5000", "llama")
#: The project's own prompts, and the recipe whose tokenizer is trained on them.
_OWN = ("demo-alpaca", "demo-llama")


@dataclass(frozen=True, slots=True)
class Mixed:
    """Prompts of many lengths.

    Attributes:
        about: which they are and how long, for a table's caption.
        ids: of each.
        tokens: of each, begin of sequence included; [prompts][tokens].
    """

    about: str
    ids: list[str]
    tokens: list[list[int]]


def random_prompts(count: int, tokens: int) -> list[list[int]]:
    """So many prompts of so many tokens, begin of sequence included, the same every time."""
    chance = random.Random(f"{_SEED}/{count}/{tokens}")
    pieces = range(_FIRST_PIECE, VOCABULARY)
    return [[1, *chance.choices(pieces, k=tokens - 1)] for _ in range(count)]


def batch_of(rows: int, tokens: int, new_tokens: int) -> Message:
    """One request for so many random prompts of one length, as JSON takes it."""
    names = [f"random-{row}" for row in range(rows)]
    prompts = random_prompts(rows, tokens)
    return asdict(BatchRequest(0, names, prompts, new_tokens, tokens + new_tokens, rows))


def mixed_prompts(count: int, models: Path) -> Mixed:
    """A sample of Alpaca where `SHARDWATT_DATA` has it and LLaMA's tokenizer, else of the project's own.

    Args:
        count: prompts.
        models: folder into which a tokenizer is trained where there is none.
    """
    catalogue, data = load_catalogue(ROOT), Path(os.environ.get("SHARDWATT_DATA", "data"))
    name, tokenizer_name = _REAL
    tokenizer = catalogue.tokenizer(tokenizer_name).path(ROOT, data)
    if not (tokenizer.is_file() and catalogue.dataset(name).path(ROOT, data).is_file()):
        name, recipe = _OWN
        site = load_site([ROOT / "profiles" / "local" / "site.yaml"])
        tokenizer = make_tokenizer(ROOT, site.model_copy(update={"models": models}), recipe)
    dataset = catalogue.dataset(name)
    chosen = sample_prompts(load_prompts(name, dataset, dataset.path(ROOT, data)), count, _SEED)
    opened = open_tokenizer(tokenizer)
    tokens = [opened.encode(prompt.text) for prompt in chosen]
    lengths = sorted(map(len, tokens))
    mean = statistics.fmean(lengths)
    about = f"{count} prompts of {name}, {lengths[0]} to {lengths[-1]} tokens, mean {mean:.0f}"
    return Mixed(about, [prompt.id for prompt in chosen], tokens)


def requests_of(mixed: Mixed, engine: str, batch: int, length: int) -> list[Message]:
    """The batches of a cell of that engine, in its own order and portions, as JSON takes them."""
    cell = Cell(engine, "made", "fp32", "cpu", 1, batch, length, "mixed", "none", 1)
    plans = plan_batches(mixed.ids, mixed.tokens, cell, CONTEXT, None)
    return [
        asdict(BatchRequest(index, plan.prompt_ids, plan.prompts, length, plan.positions, plan.rows))
        for index, plan in enumerate(plans)
    ]
