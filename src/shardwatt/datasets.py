"""The data sets that studies may name: config/datasets.yaml, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from shardwatt.cell import AXIS_PATTERNS, NAME_WORDS
from shardwatt.errors import ShardwattError, suggestion
from shardwatt.yamlfile import Form, StrictModel, parse_model, read_mapping

Entry = TypeVar("Entry")
FileName = Annotated[
    str, Form(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a file's name without folders: letters, digits and . _ -")
]
Address = Annotated[str, Form(r"https://\S+", "an address that begins with https://")]
Sha256 = Annotated[str, Form(r"[0-9a-f]{64}", "64 lower-case hexadecimal digits")]
GitBlob = Annotated[str, Form(r"[0-9a-f]{40}", "40 lower-case hexadecimal digits")]
DatasetName = Annotated[str, Form(AXIS_PATTERNS["dataset"], NAME_WORDS)]


class CatalogueError(ShardwattError):
    """A mistake in config/datasets.yaml, or a name that it does not hold."""


class PinnedFile(StrictModel):
    """A file with a checked hash, found in a folder or downloaded from a pinned address."""

    file: FileName
    """Its name in the site's data folder."""
    folder: Path | None = None
    """A folder of the project that holds it, instead of the site's data folder."""
    url: Address | None = None
    """Where it is downloaded from when the data folder lacks it; pinned to a revision."""
    sha256: Sha256 | None = None
    """Expected SHA-256 of the content."""
    git_blob: GitBlob | None = None
    """Expected git blob id of the content: the SHA-1 of `blob SIZE`, a zero byte and the content."""
    licence: str | None = None
    """Terms under which its origin offers it."""

    @model_validator(mode="after")
    def _pinned(self) -> PinnedFile:
        if self.sha256 is None and self.git_blob is None and self.folder is None:
            raise ValueError("expected sha256 or git_blob: what comes from outside is checked")
        return self

    def path(self, root: Path, data: Path) -> Path:
        """Where the file is looked for, given the project's root and the site's data folder."""
        return (root / self.folder if self.folder else data) / self.file


class Dataset(PinnedFile):
    """A data set of prompts."""

    format: Literal["alpaca", "gsm8k"]
    """`alpaca`: a JSON list of instruction, input, output; `gsm8k`: JSON lines of question, answer."""


class Catalogue(StrictModel):
    """Contents of config/datasets.yaml."""

    datasets: dict[DatasetName, Dataset]
    """The data sets, under the names that studies use."""
    tokenizers: dict[str, PinnedFile] = Field(default_factory=dict)
    """Tokenizers that model recipes may name."""

    def dataset(self, name: str) -> Dataset:
        """Look a data set up.

        Raises:
            CatalogueError: there is none of that name.
        """
        return _look_up(self.datasets, name, "data set")

    def tokenizer(self, name: str) -> PinnedFile:
        """Look a tokenizer up.

        Raises:
            CatalogueError: there is none of that name.
        """
        return _look_up(self.tokenizers, name, "tokenizer")


def _look_up(entries: dict[str, Entry], name: str, kind: str) -> Entry:
    if name not in entries:
        raise CatalogueError(
            f"unknown {kind} '{name}'{suggestion(name, entries)}; config/datasets.yaml has "
            f"{', '.join(sorted(entries)) or 'none'}"
        )
    return entries[name]


def load_catalogue(root: Path) -> Catalogue:
    """Read config/datasets.yaml below the project's root.

    Raises:
        CatalogueError: it is missing or has a mistake.
    """
    path = root / "config" / "datasets.yaml"
    return parse_model(Catalogue, read_mapping(path, CatalogueError), path, CatalogueError)
