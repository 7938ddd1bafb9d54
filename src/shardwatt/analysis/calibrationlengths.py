"""How long prompts and responses were, beside what the plan assumes: not of hardware, and not stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from shardwatt.analysis.calibrationcells import Observation
from shardwatt.datasets import load_catalogue
from shardwatt.plan.lengths import Lengths
from shardwatt.plan.workload import ASSUMED_LENGTHS

#: Share of all that may be drawn above which hardly any response has ended by itself.
_CUT = 0.98

#: Mean lengths in tokens between which one is sought, and how often the interval is halved.
_SHORTEST, _LONGEST, _HALVINGS = 1e-3, 1e6, 60


def lengths_told(root: Path, cells: Sequence[Observation]) -> list[str]:
    """Mean tokens of prompts and responses by model and data set, measured and assumed, a line each.

    They are told and not stored: factors belong to hardware and engine, and are fitted to work that was
    measured, so that no assumption about lengths is in them. The assumptions stand in config/datasets.yaml,
    and can be mended there: `prompt_deciles`, which are of a tokenizer, and `output_mean`, which counts where
    there are no `output_deciles`.

    Args:
        root: the project's root.
        cells: what finished cells did.
    """
    catalogue = load_catalogue(root)
    lines = []
    for model, dataset in dict.fromkeys((one.cell.model, one.cell.dataset) for one in cells):
        own = [one for one in cells if (one.cell.model, one.cell.dataset) == (model, dataset)]
        measured = mean_output_tokens(own)
        assumed = Lengths.of(catalogue.dataset(dataset).tokens or ASSUMED_LENGTHS)
        prompt = sum(one.prompt_tokens for one in own) / sum(one.prompts for one in own)
        response = "hardly any has ended by itself" if measured is None else f"{measured:.1f}"
        lines.append(
            f"{model} on {dataset}: tokens of a prompt {prompt:.1f}, assumed {assumed.prompts.mean:.1f}; "
            f"of a response that nothing cuts {response}, assumed {assumed.responses.mean:.1f}"
        )
    return lines


def mean_output_tokens(cells: Sequence[Observation]) -> float | None:
    """Mean tokens that responses would have if nothing cut them; None where nearly all were cut.

    For responses that end by themselves after an exponentially distributed number of tokens of mean m, as the
    plan assumes where it knows a mean alone, a cell of maximum length L has m (1 - e^(-L / m)) of each: m is
    where these add up to the tokens that were measured. What the context cuts is taken to be cut by L.

    Args:
        cells: of one model and data set.
    """
    tokens = sum(one.output_tokens for one in cells)
    if tokens == 0 or tokens > _CUT * sum(one.prompts * one.cell.length for one in cells):
        return None
    low, high = _SHORTEST, _LONGEST
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        expected = sum(one.prompts * middle * -math.expm1(-one.cell.length / middle) for one in cells)
        low, high = (low, middle) if expected > tokens else (middle, high)
    return math.sqrt(low * high)
