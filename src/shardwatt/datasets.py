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
Tokens = Annotated[int, Field(ge=1, strict=True)]
OutputTokens = Annotated[int, Field(ge=0, strict=True)]

#: Shares of the prompts or responses that `prompt_tail` and `output_tail` are of.
TAIL_SHARES = (0.95, 0.99, 0.999)


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


class TokenLengths(StrictModel):
    """How long a data set's prompts and responses are, in tokens: what plans go by before any is read."""

    prompt_deciles: list[Tokens]
    """Lengths of the prompts in tokens, 11 counts that never fall: the shortest, what 10 %, 20 % … 90 % have
    at most, and the longest; of LLaMA's tokenizer, template and begin of sequence included."""
    prompt_tail: list[Tokens] = []
    """What 95 %, 99 % and 99.9 % have at most: the few longest prompts decide over batches. Without them a
    straight line goes from 90 % to the longest."""
    output_mean: Annotated[float, Field(gt=0)]
    """Mean tokens of a response that nothing cuts, end of sequence not counted."""
    output_deciles: list[OutputTokens] = []
    """Lengths of such responses, 11 counts likewise. Without them lengths are taken to be distributed
    exponentially with that mean."""
    output_tail: list[OutputTokens] = []
    """What 95 %, 99 % and 99.9 % of them have at most."""
    source: Annotated[str, Field(min_length=1)]
    """Where these come from: what was counted, and what is assumed."""

    @model_validator(mode="after")
    def _rises(self) -> TokenLengths:
        if len(self.prompt_deciles) != 11 or len(self.prompt_tail) not in (0, len(TAIL_SHARES)):
            raise ValueError("expected 11 prompt_deciles, and 3 counts of prompt_tail or none")
        has_outputs = bool(self.output_deciles)
        if has_outputs and len(self.output_deciles) != 11:
            raise ValueError("expected 11 output_deciles or none")
        if len(self.output_tail) not in ((0, len(TAIL_SHARES)) if has_outputs else (0,)):
            raise ValueError("expected 3 counts of output_tail, beside output_deciles, or none")
        _check_rises("prompt_tail", self.prompt_deciles, self.prompt_tail)
        _check_rises("output_tail", self.output_deciles, self.output_tail)
        if has_outputs and not self.output_deciles[-1]:
            raise ValueError("output_deciles: expected a longest response of at least 1 token")
        return self


def _check_rises(tail_name: str, deciles: list[int], tail: list[int]) -> None:
    counts = [*deciles[:-1], *tail, *deciles[-1:]]
    if counts != sorted(counts):
        raise ValueError(
            f"found {counts}; expected counts that never fall, {tail_name} between the last two deciles"
        )


class Dataset(PinnedFile):
    """A data set of prompts."""

    format: Literal["alpaca", "gsm8k"]
    """`alpaca`: a JSON list of instruction, input, output; `gsm8k`: JSON lines of question, answer."""
    tokens: TokenLengths | None = None
    """How long prompts and responses are, for the plan; None: an assumption, which the plan names."""

    @property
    def longest_prompt(self) -> int | None:
        """Tokens of its longest prompt; None where that is not known."""
        return None if self.tokens is None else self.tokens.prompt_deciles[-1]


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
