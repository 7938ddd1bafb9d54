"""`shardwatt model`: what a checkpoint is, and copies of it in other shards or another layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click
from rich.console import Console
from rich.table import Table

from shardwatt.architectures import Architecture
from shardwatt.checkpoints import Layout, ModelError
from shardwatt.cli.options import find_root, root_option, site_option
from shardwatt.engines import MODEL_ENGINES
from shardwatt.errors import ShardwattError
from shardwatt.models import Checkpoint, find_checkpoint, open_checkpoint, read_architecture
from shardwatt.plan.memory import BYTES
from shardwatt.run.signals import EndingSignals
from shardwatt.site import load_site
from shardwatt.units import GIB, size_words

if TYPE_CHECKING:
    from shardwatt.checks.model import MemoryPlan, ModelFacts

_LAYOUTS = {"meta": "Meta's layout", "huggingface": "Hugging Face's layout"}

#: Percent of a copy after which progress is told again, where no terminal shows a bar.
_TOLD_PERCENT = 10


@click.group()
def model() -> None:
    """Look at a checkpoint, or copy it in another number of shards or another layout."""


@model.command()
@click.argument("path")
@click.option("--engine", type=click.Choice(list(MODEL_ENGINES)), default="reference", show_default=True)
@click.option(
    "--precision", type=click.Choice(list(BYTES)), help="Of weights and cache; default: as they are saved."
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--length", type=click.IntRange(min=1), default=256, show_default=True, help="New tokens.")
@click.option("--cache-tokens", type=click.IntRange(min=1), help="Positions of the KV cache, as in a study.")
@click.option("--deep", is_flag=True, help="Also read every tensor as a run would, and check it.")
@click.option("--format", "style", type=click.Choice(["table", "json"]), default="table", show_default=True)
@root_option
@site_option("profiles/local/site.yaml")
def inspect(
    path: str,
    engine: str,
    precision: str | None,
    batch: int,
    length: int,
    cache_tokens: int | None,
    deep: bool,
    style: str,
    root: Path | None,
    site_files: tuple[Path, ...],
) -> None:
    """Say what a checkpoint is, how many shards it allows and what memory a rank needs.

    PATH is its folder, or the name of a model of the site. Memory is an estimate for the engine's loop. Exit
    code 1 if something is wrong with the files.
    """
    from shardwatt.checks.model import deep_problems, memory_plan, model_facts

    checkpoint = _checkpoint(path, root, site_files)
    try:
        facts = model_facts(checkpoint)
    except OSError as problem:
        raise ModelError(f"{problem.filename}: {problem.strerror}") from None
    plan = memory_plan(
        facts.architecture,
        engine=engine,
        precision=precision or facts.precision,
        batch=batch,
        length=length,
        cache_tokens=cache_tokens,
    )
    problems = [*facts.problems, *(deep_problems(facts) if deep else ())]
    if style == "json":
        print(json.dumps({**facts.as_dict(), "memory": plan.as_dict(), "problems": problems}, indent=2))
    else:
        for line in _page(facts):
            click.echo(line)
        _print_plan(plan)
        if deep and not problems:
            click.echo(f"every tensor is as {checkpoint.params.name} says, and finite")
    if problems:
        raise ModelError("\n  ".join([f"{checkpoint.folder}: not as it should be:", *problems]))


@model.command()
@click.argument("path")
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--shards", type=click.IntRange(min=1), default=1, show_default=True, help="Files of Meta's layout."
)
@click.option("--layout", type=click.Choice(get_args(Layout)), default="meta", show_default=True)
@click.option("--allow-non-finite", is_flag=True, help="Also copy numbers that are infinite or none.")
@root_option
@site_option("profiles/local/site.yaml")
def reshard(
    path: str,
    target: Path,
    shards: int,
    layout: Layout,
    allow_non_finite: bool,
    root: Path | None,
    site_files: tuple[Path, ...],
) -> None:
    """Copy a checkpoint into a new folder TARGET, in other shards or another layout.

    PATH is its folder, or the name of a model of the site. No run needs this: ranks read their slices of any
    checkpoint. What was written is read back and compared before the folder appears.
    """
    from shardwatt.data.tokenizer import open_tokenizer
    from shardwatt.engine.reshard import reshard as copy

    checkpoint = _checkpoint(path, root, site_files)
    tokenizer = open_tokenizer(checkpoint.tokenizer)
    architecture: Architecture = read_architecture(checkpoint, tokenizer.vocab_size)
    # No run would take a copy in a layout whose embeddings are not padded, if this one's is.
    tokenizer.expect_vocabulary(architecture.vocab_size, layout)
    # Whatever ends it, what is half written goes.
    with EndingSignals():
        done = copy(
            *(checkpoint, architecture, target),
            layout=layout,
            shards=shards,
            bos_id=tokenizer.bos_id,
            eos_ids=tokenizer.eos_ids,
            allow_non_finite=allow_non_finite,
            progress=_progress(target),
        )
    for name, count in done.non_finite.items():
        click.echo(f"{target}: {name}: {count} numbers are infinite or none, as in the original", err=True)
    rate_mb_s = done.size_bytes / 1e6 / done.duration_s
    click.echo(
        f"{target}: {_LAYOUTS[layout]}, {_files(done.checkpoint)}, {size_words(done.size_bytes)}, verified; "
        f"{done.duration_s:.1f} s, {rate_mb_s:.0f} MB/s"
    )


def _checkpoint(path: str, root: Path | None, site_files: tuple[Path, ...]) -> Checkpoint:
    """The checkpoint in a folder, or that of a model of the site.

    Raises:
        ModelError: there is none, or it is not whole.
        ShardwattError: neither a folder nor a project with a site is there.
    """
    if not path:
        raise ModelError("PATH is empty; expected a checkpoint's folder, or the name of a model of the site")
    folder = Path(path)
    try:
        if folder.is_dir():
            return open_checkpoint(folder)
    except OSError as problem:
        raise ModelError(f"{problem.filename}: {problem.strerror}") from None
    if len(folder.parts) != 1:
        raise ModelError(
            f"{path}: no such folder; expected a checkpoint's, or the name of a model of the site"
        )
    try:
        root = (root or find_root()).resolve()
    except ShardwattError as problem:
        raise ModelError(f"{path}: no such folder, and for the name of a model: {problem}") from None
    site = load_site(list(site_files) or [root / "profiles" / "local" / "site.yaml"])
    checkpoint = find_checkpoint(root, site.models, path, 1)
    if not checkpoint.folder.is_dir():
        command = f"shardwatt make-model {path} {len(checkpoint.weights)}"
        raise ModelError(f"model '{path}' is not made yet; expected {checkpoint.folder}: {command}")
    return checkpoint


def _progress(target: Path) -> Callable[[int, int], None]:
    """Tells how far a copy is: a line that changes on a terminal, otherwise a line now and then."""
    told = -1

    def tell(done: int, total: int) -> None:
        nonlocal told
        percent = 100 * done // max(1, total)
        if sys.stderr.isatty():
            if percent > told:
                told = percent
                click.echo(f"\r{target}: {percent:3d} %", err=True, nl=percent == 100)
        elif percent // _TOLD_PERCENT > told:
            told = percent // _TOLD_PERCENT
            click.echo(f"{target}: {percent} %", err=True)

    return tell


def _page(facts: ModelFacts) -> Iterator[str]:
    """What a checkpoint is, a line for each side of it."""
    checkpoint, shape = facts.checkpoint, facts.architecture
    yield click.style(str(checkpoint.folder), bold=True)
    shards = facts.saved_shards
    saved = f"saved in {shards} shard{'' if shards == 1 else 's'}" if shards else "whole tensors"
    kinds = ", ".join(sorted(facts.numbers, key=facts.numbers.__getitem__, reverse=True)) or "unknown"
    yield _line(
        "weights",
        f"{_LAYOUTS[checkpoint.layout]}, {saved}, {_files(checkpoint)}, {_size(facts.size_bytes)}, {kinds}",
    )
    yield _line("parameters", f"{shape.parameters:,}")
    grouped = "" if shape.n_kv_heads == shape.n_heads else f", {shape.n_kv_heads} KV heads"
    yield _line(
        "shape",
        f"{shape.n_layers} layers, {shape.n_heads} heads of {shape.head_dim}{grouped}, width {shape.dim}, "
        f"feed-forward {shape.hidden_dim}, vocabulary {shape.vocab_size}, "
        f"{'tied' if shape.tied_embeddings else 'untied'} embeddings",
    )
    scaling = shape.rope_scaling
    stretched = f", scaled by {scaling.factor:g} ({scaling.kind})" if scaling else ""
    yield _line("context", f"{shape.context} positions, rotary base {shape.rope_theta:g}{stretched}")
    tokenizer = facts.tokenizer
    if tokenizer is not None:
        ends = ", ".join(map(str, sorted(facts.eos_ids)))
        yield _line(
            "tokenizer",
            f"{checkpoint.tokenizer} ({facts.tokenizer_kind}): {tokenizer.vocab_size} pieces, begin "
            f"{tokenizer.bos_id}, end {ends} by {facts.eos_source}",
        )
    yield _line("shards", f"{', '.join(map(str, shape.allowed_shards()))} allowed")


def _print_plan(plan: MemoryPlan) -> None:
    click.echo(
        f"\nGiB that a rank needs, an estimate: engine {plan.engine}, {plan.precision}, batch {plan.batch}, "
        f"length {plan.length}, {plan.positions} positions of cache"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("shards", "weights", "KV cache", "activations", "workspace", "total", "fits GPUs from"):
        table.add_column(name, justify="right")
    for rank in plan.ranks:
        need = rank.need
        parts = (need.weights_gib, need.kv_cache_gib, need.activations_gib, need.workspace_gib)
        sizes = [f"{part:.2f}" for part in (*parts, need.total_gib)]
        least = f"{min(rank.fits_gib):g}" if rank.fits_gib else "none"
        table.add_row(str(rank.shards), *sizes, least)
    # Into a pipe or a file the whole line is kept; a terminal decides the width itself.
    Console(width=None if sys.stdout.isatty() else 400, highlight=False).print(table)


def _line(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _files(checkpoint: Checkpoint) -> str:
    count = len(checkpoint.weights)
    return f"{count} file{'' if count == 1 else 's'}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB ({size_bytes / GIB:.2f} GiB)"
