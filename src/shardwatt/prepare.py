"""What cells need before they run: data sets fetched, tokenizers and models of random weights made."""

from __future__ import annotations

import io
from pathlib import Path

from sentencepiece import SentencePieceTrainer

from shardwatt.checkpoints import ModelError
from shardwatt.data.fetch import DataError, fetch, place, read_verified
from shardwatt.data.prompts import load_examples
from shardwatt.data.tokenizer import open_tokenizer
from shardwatt.datasets import CatalogueError, load_catalogue
from shardwatt.errors import suggestion
from shardwatt.layout import listed
from shardwatt.locks import alone
from shardwatt.models import (
    TRAINING_DATASETS,
    Recipe,
    find_architecture,
    load_recipe,
    made_checkpoint,
    recipe_file,
)
from shardwatt.site import Site


def fetch_file(root: Path, site: Site, name: str) -> Path:
    """Make sure that a pinned file is in the site's data folder and right; download it if it is missing.

    Args:
        root: the project's root, below which config/ lies.
        site: the place, whose data folder is looked in.
        name: the file's name, of a data set or a tokenizer in config/datasets.yaml.

    Returns:
        Where the file lies.

    Raises:
        CatalogueError: config/datasets.yaml has no such file.
        DataError: the file is of another content, or cannot be had.
    """
    catalogue = load_catalogue(root)
    entries = (*catalogue.datasets.values(), *catalogue.tokenizers.values())
    files = {entry.file: entry for entry in entries if entry.folder is None}
    if name not in files:
        raise CatalogueError(
            f"unknown data file '{name}'{suggestion(name, files)}; config/datasets.yaml has "
            f"{', '.join(sorted(files)) or 'none'}"
        )
    path = files[name].path(root, site.data)
    fetch(files[name], path)
    return path


def make_tokenizer(root: Path, site: Site, model: str) -> Path:
    """Put a recipe's tokenizer in place: the one that it names, or one trained on the demo's texts.

    The content depends on recipe and texts alone, and a file that has it already is not touched: processes
    that make several checkpoints of a model at the same time do not disturb each other.

    Args:
        root: the project's root, below which config/ lies.
        site: the place, whose models folder it is put into.
        model: the recipe's name in config/models.

    Returns:
        Where it lies.

    Raises:
        ModelError: there is no such recipe, or the texts cannot give as many pieces as it asks for.
        CatalogueError: it names a tokenizer that config/datasets.yaml does not hold.
        DataError: a file cannot be had, read or written, or is of another content.
    """
    recipe = _recipe(root, model)
    path = made_checkpoint(site.models, model, recipe.shards[0]).tokenizer
    if recipe.tokenizer is None:
        content = _trained(root, recipe)
    else:
        content = _named(root, site.data, recipe.tokenizer, path)
    if not path.is_file() or path.read_bytes() != content:
        place(content, path)
    return path


def make_model(root: Path, site: Site, model: str, shards: int) -> Path:
    """Make a recipe's checkpoint in so many shards, and its tokenizer where that is missing.

    Of several processes that make the same one at a time, as of two projects whose sites share a models
    folder, the first makes it, and the others wait and use it.

    Args:
        root: the project's root, below which config/ lies.
        site: the place, whose models folder it is put into.
        model: the recipe's name in config/models.
        shards: number of shard files.

    Returns:
        Its folder, with params.json and the shard files.

    Raises:
        ModelError: there is no such recipe, it does not list so many shards, or they do not divide it.
        ArchitectureError: its shape is impossible.
        CellFailure: with reason `bad_tokenizer`: the tokenizer's vocabulary is not the model's.
        CatalogueError: it names a tokenizer that config/datasets.yaml does not hold.
        DataError: the tokenizer cannot be had or written.
        OSError: the weights cannot be written.
    """
    recipe = _recipe(root, model)
    if shards not in recipe.shards:
        raise ModelError(
            f"model '{model}' is made in {', '.join(map(str, recipe.shards))} shards, which any number of "
            f"ranks reads, and not in {shards}; to have those too, add it to `shards` in "
            f"{recipe_file(root, model)}"
        )
    checkpoint = made_checkpoint(site.models, model, shards)
    architecture = find_architecture(root, site.models, model)
    assert architecture is not None, "a recipe gives the shape"
    if shards not in architecture.allowed_shards():
        raise ModelError(
            f"{recipe_file(root, model)}: shards: {shards} does not divide the model; use "
            f"{', '.join(map(str, architecture.allowed_shards()))}"
        )
    tokenizer = open_tokenizer(make_tokenizer(root, site, model))
    tokenizer.expect_vocabulary(architecture.vocab_size)

    # The weights make one end likely; of a tokenizer with several, the others are never drawn.
    eos_id, *others = sorted(tokenizer.eos_ids)

    from shardwatt.engine.make_weights import is_made, make_weights  # here: torch takes seconds to import

    folder, never = checkpoint.folder, [*tokenizer.unprintable_ids(), *others]
    # Without a lock: a model that is there may lie where this user cannot write.
    if not is_made(recipe, architecture, shards, folder, eos_id, never):
        with alone(folder.with_name(f".{folder.name}.lock")):
            listed(folder.parent)  # makes a network file system look again: the first may be on another node
            # Who had to wait finds the first's here, and keeps it.
            make_weights(recipe, architecture, shards, folder, eos_id, never)
    return folder


def _recipe(root: Path, model: str) -> Recipe:
    recipe = load_recipe(root, model)
    if recipe is None:
        path = recipe_file(root, model)
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise ModelError(
            f"no recipe for model '{model}'{suggestion(model, known)}: {path} is not there; "
            f"recipes: {', '.join(known) or 'none'}"
        )
    return recipe


def _named(root: Path, data: Path, name: str, copy: Path) -> bytes:
    """The tokenizer of that name: from an earlier copy that is right, otherwise from the data folder."""
    pinned = load_catalogue(root).tokenizer(name)
    try:
        return read_verified(pinned, copy)
    except DataError:
        source = pinned.path(root, data)
        fetch(pinned, source)
        return read_verified(pinned, source)


def _trained(root: Path, recipe: Recipe) -> bytes:
    """A SentencePiece BPE with LLaMA's conventions, trained on the demo's prompts and answers.

    As in LLaMA's: bytes as fall-back, digits apart, text as it is, unknown 0, begin 1, end 2, no padding.
    One thread and the texts' own order make it the same every time.
    """
    catalogue = load_catalogue(root)
    lines: list[str] = []
    for name in TRAINING_DATASETS:
        dataset = catalogue.dataset(name)
        # Split into lines, so that a line break stays a byte and never becomes part of a piece.
        for example in load_examples(name, dataset, dataset.path(root, Path())):
            lines += example.prompt.split("\n") + example.answer.split("\n")
    stream = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=stream,
            model_type="bpe",
            vocab_size=recipe.vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except RuntimeError as problem:
        raise ModelError(
            f"vocab_size: {recipe.vocab_size}: no tokenizer of so many pieces can be trained on the demo's "
            f"texts: {problem}"
        ) from None
    return stream.getvalue()
