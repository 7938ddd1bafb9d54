"""The study: what to measure. Constants and a matrix of blocks, read from config/studies/NAME.yaml."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from shardwatt.cell import AXES, AXIS_PATTERNS, COUNT_AXES, NAME_WORDS, STUDY_PATTERN, Cell, is_axis_value
from shardwatt.engines import simulated_counterpart
from shardwatt.errors import StudyError, suggestion
from shardwatt.yamlfile import Form, StrictModel, parse_model, read_mapping

Count = Annotated[int, Field(ge=1, le=999_999, strict=True)]
Item = TypeVar("Item")

#: Words that stand for a number of shards or rows, which the plan's memory model finds for each cell.
FEWEST = "minimum"
LARGEST = "maximum"

#: What becomes of cells that do not fit by the plan.
Unfit = Literal["leave-out", "run"]


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _no_doubles(values: list[Item]) -> list[Item]:
    for value, times in Counter(values).items():
        if times > 1:
            raise ValueError(f"{value!r} stands {times} times; expected each value once")
    return values


class _ListOrItem:
    """Tells editors that a list may be written as its only item."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        array = handler(core_schema)
        return {"anyOf": [array["items"], array]}


#: One value, or a list of at least one.
OneOrMore = Annotated[
    list[Item],
    Field(min_length=1),
    BeforeValidator(_as_list),
    AfterValidator(_no_doubles),
    _ListOrItem,
]


EngineName = Annotated[str, Form(AXIS_PATTERNS["engine"], NAME_WORDS)]
ModelName = Annotated[str, Form(AXIS_PATTERNS["model"], NAME_WORDS)]
GpuName = Annotated[str, Form(AXIS_PATTERNS["gpu"], NAME_WORDS)]
DatasetName = Annotated[str, Form(AXIS_PATTERNS["dataset"], NAME_WORDS)]
StudyName = Annotated[str, Form(STUDY_PATTERN, NAME_WORDS)]
Precision = Literal["fp32", "bf16", "fp16"]
CudaGraphs = Literal["one-shard", "always", "never"]


def _count_or(word: str) -> BeforeValidator:
    def check(value: object) -> object:
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 999_999
        if value != word and not whole:
            near = suggestion(value, [word]) if isinstance(value, str) else ""
            raise ValueError(f"expected a whole number from 1 to 999999, or '{word}'{near}")
        return value

    return BeforeValidator(check, json_schema_input_type=Count | Literal[word])


Shards = Annotated[int | str, _count_or(FEWEST)]
Batch = Annotated[int | str, _count_or(LARGEST)]
Cap = Annotated[int | str, _count_or("none")]


def _known_axes(entry: dict[str, list[str | int]]) -> dict[str, list[str | int]]:
    if not entry:
        raise ValueError("an empty entry would exclude every cell; name at least one axis")
    for axis, values in entry.items():
        if axis not in AXES:
            raise ValueError(f"unknown axis '{axis}'{suggestion(axis, AXES)}; allowed: {', '.join(AXES)}")
        for value in values:
            if not is_axis_value(axis, str(value)):
                kind = "a whole number" if axis in COUNT_AXES else "a name"
                raise ValueError(f"'{value}' is no value of axis {axis}; expected {kind}")
    return entry


Exclusion = Annotated[dict[str, OneOrMore[str | int]], AfterValidator(_known_axes)]


class Block(StrictModel):
    """A cross product: each axis is one value or a list of values."""

    name: str | None = None
    """What this block is for: a note to whoever reads the study."""
    engine: OneOrMore[EngineName] = ["reference"]
    """The inference loop; `simulated` or `simulated-NAME` runs no model and rehearses `reference` or NAME."""
    model: OneOrMore[ModelName]
    """Names of models: folders below the site's `models`, or recipes in config/models."""
    precision: OneOrMore[Precision] = ["fp16"]
    """Floating-point format of weights and cache."""
    gpu: OneOrMore[GpuName]
    """GPU types that the site names."""
    shards: OneOrMore[Shards]
    """Devices that one model is split over; `minimum` means the fewest that fit."""
    batch: OneOrMore[Batch]
    """Prompts answered together; `maximum` means the largest power of two that fits, up to `prompts`."""
    length: OneOrMore[Count]
    """Maximum number of new tokens per response."""
    dataset: OneOrMore[DatasetName]
    """Names from config/datasets.yaml."""
    cap: OneOrMore[Cap] = ["none"]
    """Power limit of each GPU in W, or `none`."""
    repeat: OneOrMore[Count] = [1]
    """Which repetitions, e.g. [1, 2, 3]."""
    unfit: Unfit | None = None
    """What becomes of this block's cells that do not fit; None: as the study says."""

    def names(self, cell: Cell) -> bool:
        """Whether each of a cell's values stands in the block, other than as `minimum` or `maximum`."""
        return all(str(getattr(cell, axis)) in map(str, getattr(self, axis)) for axis in AXES)


class Constants(StrictModel):
    """What all cells of a study share; its hash stands in every record and is compared when read."""

    prompts: Count
    """Prompts sampled from each data set, without replacement."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 2023
    """Seed of the prompt sample and of the sampled tokens."""
    temperature: Annotated[float, Field(ge=0, le=10, strict=True)] = 0.8
    """Sampling temperature; 0 takes the likeliest token (default: arXiv 2310.03003)."""
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.95
    """Nucleus of the sampling (default: arXiv 2310.03003)."""
    warmup_tokens: Annotated[int, Field(ge=0, le=4096, strict=True)] = 16
    """New tokens of the warm-up batch, which is not counted; 0 for no warm-up."""
    cache_tokens: Count | None = None
    """Positions of the KV cache; None: min(context, longest prompt of the batch + length)."""
    cuda_graphs: CudaGraphs = "one-shard"
    """Whether engine `fast` captures its decode steps in CUDA graphs: where one rank is alone, `always` also
    over several, or `never`. What came of it stands in the record."""
    idle_settle_s: Annotated[float, Field(ge=0, le=3600, strict=True)] = 30.0
    """Time in s that devices are left alone before a baseline of their idle power is read; there are two,
    before the ranks start and with the model loaded. Only where energy is measured, not estimated."""
    idle_read_s: Annotated[float, Field(ge=0, le=3600, strict=True)] = 10.0
    """Time in s over which each baseline is read; 0 for no baselines."""
    cool_down_c: Annotated[float, Field(ge=20, le=100, strict=True)] | None = None
    """Temperature in degrees Celsius to which every device must have cooled before a cell; None: no gate."""
    cool_down_max_s: Annotated[float, Field(gt=0, le=3600, strict=True)] = 600.0
    """Longest time in s to wait for that; then the cell runs all the same, and its record says so."""

    @property
    def hash(self) -> str:
        """SHA-256 of the constants in canonical JSON, first 16 hex digits."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _needs(schema: dict[str, Any]) -> None:
    """Tell editors that a study that rehearses another one needs no prompts and no matrix of its own."""
    schema["required"] = ["title"]
    schema["anyOf"] = [{"required": ["prompts", "matrix"]}, {"required": ["rehearses"]}]


class Study(Constants):
    """A study file: constants, a matrix of blocks, and exclusions."""

    model_config = ConfigDict(json_schema_extra=_needs)

    title: str
    """One line that says what the study is about; heads its report."""
    matrix: Annotated[list[Block], Field(min_length=1)]
    """Blocks whose cells together are the study; a cell in several blocks counts once."""
    energy: Literal["any", "measured"] = "any"
    """`measured` fails a cell at its start, before the model is loaded, where its energy could only be
    estimated or not be had; `any` runs it, and its figures say what they are."""
    exclude: list[Exclusion] = []
    """Cells to leave out: a cell is excluded if it matches every axis of an entry."""
    unfit: Unfit = "leave-out"
    """What becomes of cells that do not fit into their GPUs by the plan: left out of the run and told in
    its tables, or run all the same."""
    rehearses: StudyName | None = None
    """Another study, whose matrix, exclusions and constants this one takes, with a simulated engine in place
    of each; keys that stand here replace that study's."""
    simulated_window_s: Annotated[float, Field(gt=0, le=3600, strict=True)] = 2.0
    """Time in s that a simulated engine takes for a cell, however long the plan says that it takes."""
    max_cells: Annotated[int, Field(ge=1, strict=True)] = 100_000
    """Most cells that the matrix may have, exclusions and doubles counted."""

    @property
    def constants(self) -> Constants:
        """The constants alone."""
        return Constants(**{key: getattr(self, key) for key in Constants.model_fields})

    def runs_unfit(self, cell: Cell) -> bool:
        """Whether one of the study's cells is to run although it does not fit by the plan.

        So it is if any of the blocks that have it says so, or says nothing where the study does. `minimum`
        and `maximum` ask for numbers that fit: a cell of theirs that does not is never run.
        """
        return any((block.unfit or self.unfit) == "run" and block.names(cell) for block in self.matrix)


def study_file(root: Path, name: str) -> Path:
    """Path of a study's file below the project's root."""
    return root / "config" / "studies" / f"{name}.yaml"


def study_names(root: Path) -> list[str]:
    """Names of the studies below the project's root."""
    return sorted(path.stem for path in (root / "config" / "studies").glob("*.yaml"))


def load_study(root: Path, name: str) -> Study:
    """Read and check a study; of one that rehearses another, the cells and constants are filled in.

    Raises:
        StudyError: there is no such study, or its file or that of the study it rehearses has a mistake.
    """
    path, content = study_file(root, name), _content(root, name)
    rehearsed = content.get("rehearses")
    if rehearsed is not None:
        content = {**_taken(root, path, rehearsed, own=content), **content}
    study = parse_model(Study, content, path, StudyError)
    return study if study.rehearses is None else _simulated(study)


def _content(root: Path, name: str) -> dict[str, Any]:
    """What a study's file says, unchecked."""
    path = study_file(root, name)
    if re.fullmatch(STUDY_PATTERN, name) is None:
        where, near = study_file(root, "NAME"), suggestion(name.lower(), study_names(root))
        raise StudyError(f"'{name}' cannot name a study{near}; expected {NAME_WORDS} ({where})")
    if not path.is_file():
        known = study_names(root)
        raise StudyError(
            f"unknown study '{name}'{suggestion(name, known)}; known: {', '.join(known) or 'none'} "
            f"(a study is a file {path.parent}/NAME.yaml)"
        )
    return read_mapping(path, StudyError)


#: What a rehearsal takes from the study that it rehearses, beside its constants.
_TAKEN = ("matrix", "exclude", "unfit", "max_cells")


def _taken(root: Path, path: Path, rehearsed: object, *, own: Iterable[str]) -> dict[str, Any]:
    """The keys that a rehearsal takes; exclusions, and what becomes of unfit cells, with their matrix alone.

    Raises:
        StudyError: it is no name, or the other study is not there, has a mistake, or is a rehearsal itself.
    """
    if not isinstance(rehearsed, str) or re.fullmatch(STUDY_PATTERN, rehearsed) is None:
        raise StudyError(
            f"{path}: rehearses: found {rehearsed!r}; expected the name of a study: {NAME_WORDS}"
        )
    try:
        content = _content(root, rehearsed)
    except StudyError as problem:
        raise StudyError(f"{path}: rehearses: {problem}") from None
    if "rehearses" in content:
        raise StudyError(
            f"{path}: rehearses: '{rehearsed}' is a rehearsal itself; expected a study with a matrix to run"
        )
    other = parse_model(Study, content, study_file(root, rehearsed), StudyError)
    keys = {*Constants.model_fields, *(_TAKEN if "matrix" not in own else ())}
    return other.model_dump(include=keys)


def _simulated(study: Study) -> Study:
    """The same study with every engine replaced by its simulated counterpart."""
    matrix = [
        block.model_copy(update={"engine": list(dict.fromkeys(map(simulated_counterpart, block.engine)))})
        for block in study.matrix
    ]
    exclude = [
        {axis: [simulated_counterpart(str(value)) for value in values] if axis == "engine" else values
         for axis, values in entry.items()}
        for entry in study.exclude
    ]  # fmt: skip
    return study.model_copy(update={"matrix": matrix, "exclude": exclude})
