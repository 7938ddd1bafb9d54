"""Where a model's checkpoint lies, what shape it has, and recipes for models that can be made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shardwatt.architectures import CATALOGUE, Architecture, from_params
from shardwatt.checkpoints import (
    CHECKLIST_FILE,
    GENERATION_FILE,
    INDEX_FILE,
    LAYOUTS,
    SHAPE_FILES,
    SUMS_FILE,
    ModelError,
    layout_of,
    read_object,
    tokenizer_file,
    weight_names,
)

# Of what is found here, and so offered from here too.
from shardwatt.checkpoints import SHARD_FILE as SHARD_FILE
from shardwatt.checkpoints import Checkpoint as Checkpoint
from shardwatt.checkpoints import Layout as Layout
from shardwatt.errors import suggestion
from shardwatt.hfconfig import from_config
from shardwatt.shapes import own_shapes, shapes_file
from shardwatt.tensornames import embedding_rows
from shardwatt.weightprints import weight_print
from shardwatt.yamlfile import StrictModel, parse_model, read_mapping

#: Data sets of the project itself whose prompts and answers a recipe's own tokenizer is trained on.
TRAINING_DATASETS = ("demo-alpaca", "demo-gsm8k")

#: Files beside the weights that tell what a run does: sums, where tensors lie, which ids end a response.
_TELLING_FILES = (CHECKLIST_FILE, SUMS_FILE, INDEX_FILE, GENERATION_FILE)
#: Beside a tokenizer.json, names its begin and end of sequence.
_TOKENIZER_CONFIG = "tokenizer_config.json"

#: In a checkpoint that was made from a recipe: all that its weights depend on.
MADE_FROM_FILE = "made-from.json"

_SHARDS_FOLDER = re.compile(r"shards-([1-9][0-9]*)")


class Recipe(StrictModel):
    """How to make a model of random weights: config/models/NAME.yaml.

    What the weights say changes the time of inference only through the length of the responses, and its
    energy little besides: a processor's power depends somewhat on the values it works on.
    """

    about: str
    """One line that says what the model is for."""
    dim: Annotated[int, Field(ge=2, strict=True)]
    """Width of the residual stream."""
    n_layers: Annotated[int, Field(ge=1, strict=True)]
    """Transformer blocks."""
    n_heads: Annotated[int, Field(ge=1, strict=True)]
    """Attention heads."""
    multiple_of: Annotated[int, Field(ge=1, strict=True)] = 32
    """The feed-forward width is two thirds of 4 x dim, rounded up to a multiple of this."""
    context: Annotated[int, Field(ge=16, strict=True)] = 2048
    """Positions that prompt and response may take together."""
    tokenizer: str | None = None
    """Name of a tokenizer in config/datasets.yaml; None trains one on the demo's own prompts."""
    vocab_size: Annotated[int, Field(ge=300, strict=True)] = 1024
    """Pieces of the tokenizer that is trained where none is named."""
    mean_response_tokens: Annotated[float, Field(gt=1, strict=True)]
    """Expected tokens until a response ends by itself, at temperature 0.8."""
    shards: Annotated[list[Annotated[int, Field(ge=1, strict=True)]], Field(min_length=1)] = [1]
    """Shard counts to save it in, each a checkpoint of its own. A cell of another count reads the first: any
    number of ranks reads its slices from any of them."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Seed of the weights."""


def recipe_file(root: Path, model: str) -> Path:
    """Path of a model's recipe below the project's root."""
    return root / "config" / "models" / f"{model}.yaml"


def load_recipe(root: Path, model: str) -> Recipe | None:
    """Read a model's recipe; None where it has none.

    Raises:
        ModelError: the recipe has a mistake.
    """
    path = recipe_file(root, model)
    if not path.is_file():
        return None
    return parse_model(Recipe, read_mapping(path, ModelError), path, ModelError)


def made_checkpoint(models: Path, model: str, shards: int) -> Checkpoint:
    """Where a recipe's checkpoint of a shard count is put: MODELS/NAME/shards-N."""
    folder = models / model
    files = tuple(SHARD_FILE.format(rank=rank) for rank in range(shards))
    return Checkpoint(folder / f"shards-{shards}", folder / "tokenizer.model", "meta", files)


def made_from(folder: Path) -> object:
    """What a checkpoint was made from, as `MADE_FROM_FILE` in it says; None where nothing does."""
    try:
        return json.loads((folder / MADE_FROM_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def find_checkpoint(root: Path, models: Path, model: str, shards: int) -> Checkpoint:
    """Find the checkpoint that a cell loads; it may be saved in any layout and any number of shards.

    Looked for in MODELS/NAME/shards-N, then in MODELS/NAME itself, then in the MODELS/NAME/shards-M of the
    smallest M. A recipe's checkpoint need not exist yet: it is the one of this shard count, or the first
    that the recipe lists.

    Raises:
        ModelError: there is none, it is not whole, or the recipe has a mistake.
    """
    recipe = load_recipe(root, model)
    if recipe is not None:
        return made_checkpoint(models, model, shards if shards in recipe.shards else recipe.shards[0])
    with _told_of(model):
        own = models / model / f"shards-{shards}"
        folder = own if own.is_dir() else next(_saved_folders(models / model), None)
        if folder is not None:
            return open_checkpoint(folder)
    if (models / model).is_dir():
        raise ModelError(f"model '{model}': {models / model} holds no checkpoint; expected {LAYOUTS}")
    if model in CATALOGUE or model in own_shapes(root):
        raise ModelError(
            f"no checkpoint of model '{model}': expected one in {models / model} (the site's key `models`, "
            "or SHARDWATT_MODELS); `shardwatt plan STUDY` forecasts without one"
        )
    known = _model_names(root, models)
    raise ModelError(
        f"unknown model '{model}'{suggestion(model, known)}; {models / model} is not there "
        f"and config/models has no recipe of that name; known: {', '.join(known) or 'none'}"
    )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Look at the checkpoint in a folder, of either layout; its weights are not opened.

    Raises:
        ModelError: there is none, or it is not whole.
        OSError: the folder cannot be read.
    """
    layout = layout_of(folder)
    if layout is None:
        inside = [path.name for path in _saved_folders(folder)]
        if inside:
            raise ModelError(
                f"{folder} holds no checkpoint itself; {' and '.join(inside)} in it "
                f"{'does: name it' if len(inside) == 1 else 'do: name one of them'}"
            )
        raise ModelError(f"{folder} holds no checkpoint; expected {LAYOUTS}")
    weights = weight_names(folder, layout)
    return Checkpoint(folder, tokenizer_file(folder, layout), layout, weights)


def find_architecture(root: Path, models: Path, model: str) -> Architecture | None:
    """The shape of a model from its recipe, its own files, config/architectures.yaml, or the catalogue.

    A vocabulary that params.json leaves open is the rows of the saved embedding, or those of the last two.

    Returns:
        None if nothing says it.

    Raises:
        ArchitectureError: its params.json or config.json describes nothing that runs here, or
            config/architectures.yaml has a mistake.
        ModelError: that file cannot be read, or its recipe has a mistake.
    """
    recipe = load_recipe(root, model)
    if recipe is not None:
        params = {**recipe.model_dump(include={"dim", "n_layers", "n_heads", "multiple_of"})}
        params["max_seq_len"] = recipe.context
        return from_params(params, vocab_size=_recipe_vocabulary(recipe))
    known = own_shapes(root).get(model) or CATALOGUE.get(model)
    try:
        for folder in _saved_folders(models / model):
            layout = layout_of(folder)
            if layout is None or not (folder / SHAPE_FILES[layout]).is_file():
                continue
            content = read_object(folder / SHAPE_FILES[layout])
            rows = known.vocab_size if known else None
            if _leaves_vocabulary_open(layout, content):
                rows = _saved_rows(folder, layout, content.get("dim")) or rows
                if rows is None:
                    return None
            return _architecture(layout, content, rows)
    except OSError as problem:
        raise ModelError(f"{problem.filename}: {problem.strerror}") from None
    return known


def unknown_shape(root: Path, models: Path, model: str) -> str:
    """Say that a model's shape is not known, which one may be meant, and where to put it."""
    names = dict.fromkeys((*CATALOGUE, *own_shapes(root), *_model_names(root, models)))
    known = [name for name in names if name != model]  # its folder may be there, without a shape
    near = suggestion(model, known) or f"; known: {', '.join(known)}"
    return (
        f"the shape of model '{model}' is not known here{near}; put its params.json or config.json into "
        f"{models / model}, or its shape into {shapes_file(root)}"
    )


def read_architecture(checkpoint: Checkpoint, vocab_size: int | None = None) -> Architecture:
    """The shape of a checkpoint, from its params.json or config.json.

    Args:
        checkpoint: where they lie.
        vocab_size: pieces of the tokenizer, where neither that file says it (as LLaMA 1's) nor the embedding
            can be looked at.

    Raises:
        ArchitectureError: the file describes nothing that runs here.
        ModelError: it cannot be read.
    """
    content = read_object(checkpoint.params)
    if _leaves_vocabulary_open(checkpoint.layout, content):
        vocab_size = embedding_rows(checkpoint.weight_files, content.get("dim")) or vocab_size
    return _architecture(checkpoint.layout, content, vocab_size)


def declared_eos_ids(checkpoint: Checkpoint, vocab_size: int | None = None) -> frozenset[int] | None:
    """Ids that end a response, as the checkpoint itself says: LLaMA 3's that chat have several.

    From generation_config.json, which transformers follows first, or config.json.

    Args:
        checkpoint: its files.
        vocab_size: rows of the embedding; an end beyond them is never drawn, and no response would end.

    Returns:
        None where it says nothing, as Meta's own checkpoints never do: then the tokenizer's own count.

    Raises:
        ModelError: a file cannot be read, or says something else than whole numbers below `vocab_size`.
    """
    for path in (checkpoint.folder / GENERATION_FILE, checkpoint.params):
        said = read_object(path).get("eos_token_id") if path.is_file() else None
        if said is None:
            continue
        ids = said if isinstance(said, list) else [said]
        if not ids or any(not isinstance(one, int) or isinstance(one, bool) or one < 0 for one in ids):
            raise ModelError(
                f"{path}: eos_token_id: found {said!r}; expected a token's number or a list of them"
            )
        if vocab_size is not None and (beyond := sorted(one for one in ids if one >= vocab_size)):
            raise ModelError(
                f"{path}: eos_token_id: found {', '.join(map(str, beyond))}, and the model's vocabulary has "
                f"{vocab_size} rows; expected ids below that: put the model's own file there"
            )
        return frozenset(ids)
    return None


def fingerprint(root: Path, checkpoint: Checkpoint, model: str) -> str:
    """Identity of a checkpoint, cheap enough for a dry run: first 16 hex digits of a SHA-256.

    Over the recipe and the number of shards, for a model that is made from one; otherwise over the shape,
    the tokenizer, names of the weight files and what `weight_print` knows them by, and what lies beside them
    of sums, the index of tensors and what says which ids end a response. Touching a file does not change it.

    Raises:
        ModelError: a file of the checkpoint is missing.
    """
    digest = hashlib.sha256()
    recipe = recipe_file(root, model)
    if recipe.is_file():
        digest.update(recipe.read_bytes() + b"%d" % len(checkpoint.weights))
        return digest.hexdigest()[:16]
    with _told_of(model):
        for path in (checkpoint.params, checkpoint.tokenizer):
            digest.update(path.read_bytes())
        for path in checkpoint.weight_files:
            digest.update(f"{path.name} {weight_print(path)}\n".encode())
        telling = [checkpoint.folder / name for name in _TELLING_FILES]
        if checkpoint.tokenizer.suffix == ".json":
            telling.append(checkpoint.tokenizer.with_name(_TOKENIZER_CONFIG))
        for path in telling:
            if path.is_file():
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _told_of(model: str) -> Iterator[None]:
    """Say of which model it is that something is wrong."""
    try:
        yield
    except ModelError as problem:
        raise ModelError(f"model '{model}': {problem}") from None
    except OSError as problem:
        raise ModelError(f"model '{model}': {problem.filename}: {problem.strerror}") from None


def _saved_folders(home: Path) -> Iterator[Path]:
    """Folders of a model that hold a checkpoint, whole or not: its own first, then by number of shards."""
    if not home.is_dir():
        return
    if layout_of(home) is not None:
        yield home
    numbered = [
        (int(match[1]), path) for path in home.iterdir() if (match := _SHARDS_FOLDER.fullmatch(path.name))
    ]
    for _, path in sorted(numbered):
        if layout_of(path) is not None:
            yield path


def _leaves_vocabulary_open(layout: Layout, content: Mapping[str, Any]) -> bool:
    return layout == "meta" and content.get("vocab_size") in (None, -1)


def _saved_rows(folder: Path, layout: Layout, dim: object) -> int | None:
    """Rows of the embedding in a folder that need not be whole; None where they cannot be had."""
    try:
        names = weight_names(folder, layout)
    except ModelError:
        return None  # told where the checkpoint is asked for
    return embedding_rows([folder / name for name in names], dim)


def _architecture(layout: Layout, content: Mapping[str, Any], vocab_size: int | None) -> Architecture:
    return from_params(content, vocab_size) if layout == "meta" else from_config(content)


def _recipe_vocabulary(recipe: Recipe) -> int:
    # The named tokenizers are LLaMA's, of 32,000 pieces; the maker checks it against the file.
    return recipe.vocab_size if recipe.tokenizer is None else 32_000


def _model_names(root: Path, models: Path) -> list[str]:
    made = {path.stem for path in (root / "config" / "models").glob("*.yaml")}
    found = {path.name for path in models.glob("[!.]*") if path.is_dir()}
    return sorted(made | found)
