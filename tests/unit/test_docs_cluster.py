"""Guards docs/cluster.md: what it says that a site's file asks of Slurm is what comes out of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from executor_words import sbatch_words
from shardwatt.resources import describe_job
from shardwatt.site import Site
from slurm_site import slurm_cell

PAGE = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
_EXAMPLE = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
_WORDS = re.compile(r"^shards=(\d+) gpu=(\w+): (.*)$", re.MULTILINE)


def examples() -> list[tuple[Site, str]]:
    """Each site of the page, with the text below it up to the next."""
    parts = _EXAMPLE.split(PAGE)[1:]
    return [
        (Site(**yaml.safe_load(content)), text) for content, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def said() -> list[object]:
    return [
        pytest.param(site, int(shards), gpu, words, id=f"{site.name}-{gpu}-{shards}")
        for site, text in examples()
        for shards, gpu, words in _WORDS.findall(text)
    ]


def test_both_worked_examples_say_what_is_asked() -> None:
    assert {site.name for site, text in examples() if _WORDS.search(text)} == {"two-gpu-nodes", "h100-pod"}


@pytest.mark.parametrize(("site", "shards", "gpu", "words"), said())
def test_the_words_of_sbatch_are_those_of_the_example(site: Site, shards: int, gpu: str, words: str) -> None:
    assert " ".join(sbatch_words(site, slurm_cell(shards, gpu), 1)) == words


def test_the_plan_is_that_of_the_example() -> None:
    site = examples()[0][0]
    assert describe_job(site, "STUDY", slurm_cell(8), 1) in PAGE
    assert f"max_gpu_hours: {site.max_gpu_hours:g}" in PAGE
