"""Where a model's checkpoint lies, what shape it has, and recipes for models that can be made."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from shardwatt.architectures import CATALOGUE, Architecture, from_params
from shardwatt.errors import ShardwattError, suggestion
from shardwatt.yamlfile import StrictModel, parse_model, read_mapping

#: Data sets of the project itself whose prompts and answers a recipe's own tokenizer is trained on.
TRAINING_DATASETS = ("demo-alpaca", "demo-gsm8k")

SHARD_FILE = "consolidated.{rank:02d}.pth"
_SHARD_NAME = re.compile(r"consolidated\.[0-9]{2}\.pth")


_LAYOUT = "Meta's layout: params.json, consolidated.00.pth and on, tokenizer.model there or one folder up"


class ModelError(ShardwattError):
    """A model that is not there, or whose recipe has a mistake."""


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
    shards: Annotated[list[Annotated[int, Field(ge=1, strict=True)]], Field(min_length=1)]
    """Shard counts to save it in, each a checkpoint of its own."""
    seed: Annotated[int, Field(ge=0, strict=True)] = 0
    """Seed of the weights."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint in Meta's layout.

    Attributes:
        folder: holds params.json and the shard files.
        tokenizer: the SentencePiece model beside them, or one folder up.
        shards: the number of shard files that a complete checkpoint has.
    """

    folder: Path
    tokenizer: Path
    shards: int

    @property
    def params(self) -> Path:
        return self.folder / "params.json"

    @property
    def shard_files(self) -> list[Path]:
        """The shard files in rank order."""
        return [self.folder / SHARD_FILE.format(rank=rank) for rank in range(self.shards)]

    @property
    def files(self) -> list[Path]:
        """Every file that a run reads."""
        return [self.params, self.tokenizer, *self.shard_files]


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
    return Checkpoint(folder / f"shards-{shards}", folder / "tokenizer.model", shards)


def find_checkpoint(root: Path, models: Path, model: str, shards: int) -> Checkpoint:
    """Find the checkpoint that a cell loads.

    Looked for in MODELS/NAME/shards-N, then in MODELS/NAME itself, with the tokenizer in the same
    folder or one up (as Meta's download has it); a recipe's checkpoint need not exist yet.

    Raises:
        ModelError: there is neither, it is saved in another number of shards, or a file is missing.
    """
    recipe = load_recipe(root, model)
    if recipe is not None:
        if shards not in recipe.shards:
            raise ModelError(
                f"model '{model}' is made in {_listed(recipe.shards)} shards, and the study asks for "
                f"{shards}; add it to `shards` in {recipe_file(root, model)}"
            )
        return made_checkpoint(models, model, shards)
    try:
        return _saved_checkpoint(root, models, model, shards)
    except OSError as problem:
        raise ModelError(f"model '{model}': {problem.filename}: {problem.strerror}") from None


def _saved_checkpoint(root: Path, models: Path, model: str, shards: int) -> Checkpoint:
    own = models / model / f"shards-{shards}"
    folder = own if own.is_dir() else models / model
    if not (folder / "params.json").is_file():
        others = sorted(path.parent.name for path in (models / model).glob("shards-*/params.json"))
        if others:
            raise ModelError(
                f"model '{model}' in {models / model} is saved as {_listed(others)}, and the study asks for "
                f"shards: {shards}; put a checkpoint of {shards} shards into {own}"
            )
        if folder.is_dir():
            raise ModelError(f"model '{model}': {folder / 'params.json'} is missing; expected {_LAYOUT}")
        known = _model_names(root, models)
        raise ModelError(
            f"unknown model '{model}'{suggestion(model, known)}; {folder} is not there "
            f"and config/models has no recipe of that name; known: {_listed(known) or 'none'}"
        )
    saved = sum(1 for path in folder.iterdir() if _SHARD_NAME.fullmatch(path.name))
    if saved != shards:
        raise ModelError(
            f"model '{model}' in {folder} is saved in {saved} shards, and the study asks for {shards}; "
            f"use shards: {saved}, or put a checkpoint of {shards} shards into {own}"
        )
    beside = folder / "tokenizer.model"
    checkpoint = Checkpoint(folder, beside if beside.is_file() else folder.parent / beside.name, shards)
    for path in checkpoint.files:
        if not path.is_file():
            raise ModelError(f"model '{model}': {path} is missing; expected {_LAYOUT}")
    return checkpoint


def find_architecture(root: Path, models: Path, model: str) -> Architecture | None:
    """The shape of a model from its recipe, its params.json, or the catalogue; None if unknown.

    Raises:
        ArchitectureError: its params.json is wrong.
        ModelError: its recipe has a mistake.
    """
    recipe = load_recipe(root, model)
    if recipe is not None:
        params = {**recipe.model_dump(include={"dim", "n_layers", "n_heads", "multiple_of"})}
        params["max_seq_len"] = recipe.context
        return from_params(params, vocab_size=_recipe_vocabulary(recipe))
    known = CATALOGUE.get(model)
    try:
        for folder in (models / model, *sorted((models / model).glob("shards-*"))):
            if (folder / "params.json").is_file():
                return from_params(read_params(folder / "params.json"), known.vocab_size if known else 32_000)
    except OSError as problem:
        raise ModelError(f"{problem.filename}: {problem.strerror}") from None
    return known


def read_params(path: Path) -> dict[str, object]:
    """Read a params.json.

    Raises:
        ModelError: it is unreadable or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"{path}: cannot be read: {problem}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def fingerprint(root: Path, checkpoint: Checkpoint, model: str) -> str:
    """Identity of a checkpoint, cheap enough for a dry run: first 16 hex digits of a SHA-256.

    Over the recipe, for a model that is made from one; otherwise over params.json, the tokenizer,
    names and sizes of the shard files, and the checklist of checksums that Meta ships beside them.
    Touching a file does not change it.

    Raises:
        ModelError: a file of the checkpoint is missing.
    """
    digest = hashlib.sha256()
    recipe = recipe_file(root, model)
    if recipe.is_file():
        digest.update(recipe.read_bytes() + b"%d" % checkpoint.shards)
        return digest.hexdigest()[:16]
    try:
        for path in (checkpoint.params, checkpoint.tokenizer):
            digest.update(path.read_bytes())
        for path in checkpoint.shard_files:
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        checklist = checkpoint.folder / "checklist.chk"
        if checklist.is_file():
            digest.update(checklist.read_bytes())
    except OSError as problem:
        raise ModelError(f"model '{model}': {problem.filename}: {problem.strerror}") from None
    return digest.hexdigest()[:16]


def _recipe_vocabulary(recipe: Recipe) -> int:
    # The named tokenizers are LLaMA's, of 32,000 pieces; the maker checks it against the file.
    return recipe.vocab_size if recipe.tokenizer is None else 32_000


def _model_names(root: Path, models: Path) -> list[str]:
    made = {path.stem for path in (root / "config" / "models").glob("*.yaml")}
    found = {path.name for path in models.iterdir() if path.is_dir()} if models.is_dir() else set()
    return sorted(made | found)


def _listed(values: list[int] | list[str]) -> str:
    return ", ".join(str(value) for value in values)
