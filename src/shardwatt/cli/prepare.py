"""Commands that make or fetch what cells read."""

from __future__ import annotations

import click

from shardwatt.cli.options import Place, find_root, place_options


@click.command()
@click.argument("file")
@place_options
def fetch(place: Place, file: str) -> None:
    """Fetch a pinned FILE of config/datasets.yaml into the data folder, and check its hash."""
    from shardwatt.prepare import fetch_file

    print(fetch_file(place.root, place.site, file))


@click.command("make-tokenizer")
@click.argument("model")
@place_options
def make_tokenizer(place: Place, model: str) -> None:
    """Make the tokenizer of a MODEL that has a recipe in config/models."""
    from shardwatt.prepare import make_tokenizer as make

    print(make(place.root, place.site, model))


@click.command("make-model")
@click.argument("model")
@click.argument("shards", type=click.IntRange(min=1))
@place_options
def make_model(place: Place, model: str, shards: int) -> None:
    """Make the weights of a MODEL that has a recipe, saved in SHARDS files."""
    from shardwatt.prepare import make_model as make

    print(make(place.root, place.site, model, shards))


@click.command()
def schemas() -> None:
    """Write the JSON schemas that editors check files with, and the tables of keys in config/README.md."""
    from shardwatt.schemas import write_key_tables, write_schemas

    root = find_root()
    for path in (*write_schemas(root), write_key_tables(root)):
        print(path)
