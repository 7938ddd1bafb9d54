"""What a folder holds of a checkpoint: which layout, which files of weights, which tokenizer; no torch.

Nothing is opened but small files of JSON. A folder that a download has not filled gets one message.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shardwatt.errors import ShardwattError

#: `meta`: a file of weights for each shard that it was saved in; `huggingface`: whole tensors.
Layout = Literal["meta", "huggingface"]

SHARD_FILE = "consolidated.{rank:02d}.pth"

#: The file that says a model's shape.
SHAPE_FILES: dict[Layout, str] = {"meta": "params.json", "huggingface": "config.json"}

#: Which tensor lies in which file, where transformers has saved several.
INDEX_FILE = "model.safetensors.index.json"
#: What transformers is told of generating, ids that end a response among it.
GENERATION_FILE = "generation_config.json"
#: MD5 sums of all its files that Meta ships beside a checkpoint.
CHECKLIST_FILE = "checklist.chk"
#: SHA-256 sums of files beside it, as sha256sum writes them.
SUMS_FILE = "SHA256SUMS"

LAYOUTS = (
    "Meta's layout (params.json, consolidated.00.pth or .safetensors and on, tokenizer.model) or Hugging "
    "Face's (config.json, model.safetensors or several with model.safetensors.index.json, tokenizer.json)"
)

#: The kind that a layout's own tools read comes first.
_TOKENIZERS: dict[Layout, tuple[str, str]] = {
    "meta": ("tokenizer.model", "tokenizer.json"),
    "huggingface": ("tokenizer.json", "tokenizer.model"),
}

_NUMBERED = re.compile(r"consolidated\.([0-9]{2})\.(pth|safetensors)")
#: A checkpoint of one shard, as Mistral names it.
_ALONE = ("consolidated.safetensors", "consolidated.pth")
#: The only file of a checkpoint of transformers that is not split.
WHOLE_FILE = "model.safetensors"
_PART = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")
_SAFETENSORS_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_PICKLED = re.compile(r"pytorch_model.*\.bin")
_UNFINISHED = (".incomplete", ".part", ".aria2")

#: How a pointer begins that git leaves where git-lfs was not asked for the file (git-lfs/docs/spec.md).
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_MAXIMUM_BYTES = 1024

_LISTED = 4


class ModelError(ShardwattError):
    """A model that is not there or not whole, or whose recipe has a mistake."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as it is saved; it runs at any shard count that its shape allows.

    Attributes:
        folder: holds the shape and the weights.
        tokenizer: tokenizer.model or tokenizer.json beside them, or one folder up.
        layout: `meta`: params.json and consolidated.NN.pth or .safetensors, one for each shard that it was
            saved in, under Meta's names; `huggingface`: config.json and *.safetensors, whole tensors under
            the names of transformers.
        weights: names of the weight files: in rank order for `meta`.
    """

    folder: Path
    tokenizer: Path
    layout: Layout
    weights: tuple[str, ...]

    @property
    def params(self) -> Path:
        """The file that says the model's shape."""
        return self.folder / SHAPE_FILES[self.layout]

    @property
    def weight_files(self) -> list[Path]:
        """The weight files, in rank order for `meta`."""
        return [self.folder / name for name in self.weights]

    @property
    def files(self) -> list[Path]:
        """Every file that a run reads."""
        return [self.params, self.tokenizer, *self.weight_files]


def layout_of(folder: Path) -> Layout | None:
    """The layout of the checkpoint in a folder, whole or not; None where there is nothing of one.

    Where both layouts lie in one folder, the one that has weights counts, Meta's first.

    Raises:
        OSError: the folder cannot be listed.
    """
    if not folder.is_dir():
        return None
    names = {path.name for path in folder.iterdir()}
    shaped = [layout for layout, name in SHAPE_FILES.items() if name in names]
    for layout in shaped:
        if any(_is_weights(layout, name) for name in names):
            return layout
    if shaped:
        return shaped[0]
    layouts: tuple[Layout, ...] = ("meta", "huggingface")
    return next((layout for layout in layouts if any(_is_weights(layout, name) for name in names)), None)


def weight_names(folder: Path, layout: Layout) -> tuple[str, ...]:
    """Names of the files of weights, in rank order for `meta`.

    Raises:
        ModelError: one is missing, is no file, or only a pointer of git-lfs.
        OSError: the folder cannot be read.
    """
    names = {path.name for path in folder.iterdir()}
    if SHAPE_FILES[layout] not in names:
        raise ModelError(f"{folder / SHAPE_FILES[layout]} is missing; expected {LAYOUTS}")
    found = _meta_weights(folder, names) if layout == "meta" else _whole_weights(folder, names)
    refuse_strangers(folder / name for name in found)
    return found


def tokenizer_file(folder: Path, layout: Layout) -> Path:
    """The tokenizer of a checkpoint: in its folder or one up.

    Raises:
        ModelError: there is none, or only a pointer of git-lfs.
        OSError: a folder cannot be read.
    """
    kinds = _TOKENIZERS[layout]
    for place in (folder, folder.parent):
        for name in kinds:
            if (place / name).is_file():
                refuse_strangers([place / name])
                return place / name
    raise ModelError(
        f"{folder / kinds[0]} is missing; expected the model's own there or one folder up, {kinds[0]} or "
        f"{kinds[1]}"
    )


def refuse_strangers(paths: Iterable[Path]) -> None:
    """Refuse what is no file, as reading of a pipe would wait for ever, and files that git left as pointers.

    Raises:
        ModelError: one is no file, or such a pointer.
        OSError: one cannot be read.
    """
    for path in paths:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
            raise ModelError(f"{path} is {kind}; expected a file: fetch it again")
        size = status.st_size
        if size > _POINTER_MAXIMUM_BYTES:
            continue
        with path.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(
                    f"{path} is a git-lfs pointer of {size} bytes and not the file itself; run "
                    f"`git lfs pull` in {path.parent}"
                )


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ModelError: it is unreadable, no file, a pointer of git-lfs, or no JSON object.
    """
    try:
        refuse_strangers([path])
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ModelError(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{path}: cannot be read: {problem}") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _is_weights(layout: Layout, name: str) -> bool:
    if layout == "meta":
        return name in _ALONE or _NUMBERED.fullmatch(name) is not None
    return name in (WHOLE_FILE, INDEX_FILE)


def _meta_weights(folder: Path, names: Collection[str]) -> tuple[str, ...]:
    """Shards by number; those of safetensors go before pickled ones of the same checkpoint."""
    numbered = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    if not numbered:
        alone = next((name for name in _ALONE if name in names), None)
        if alone is None:
            raise _missing(folder, names, "consolidated.00.pth")
        return (alone,)
    suffix = max(match[2] for match in numbered)
    there = {match[0] for match in numbered if match[2] == suffix}
    wanted = {f"consolidated.{number:02d}.{suffix}" for number in range(1 + int(max(there).split(".")[1]))}
    if suffix == "pth" and CHECKLIST_FILE in names:
        # The one file that says how many there are: a gap at the end shows nowhere else.
        listed = re.findall(r"\S+$", (folder / CHECKLIST_FILE).read_text(errors="replace"), re.MULTILINE)
        wanted |= {name for name in listed if _NUMBERED.fullmatch(name)}
    if absent := sorted(wanted - there):
        raise _missing(folder, names, *absent, of=len(wanted))
    return tuple(sorted(there))


def _whole_weights(folder: Path, names: Collection[str]) -> tuple[str, ...]:
    """Files of whole tensors; as for transformers, a single one goes before an index of several."""
    if WHOLE_FILE in names:
        return (WHOLE_FILE,)
    if INDEX_FILE not in names:
        raise _missing(folder, names, INDEX_FILE if any(map(_PART.fullmatch, names)) else WHOLE_FILE)
    index = folder / INDEX_FILE
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index}: weight_map: expected the file of each tensor; get a clean copy")
    wanted = set(map(str, places.values()))
    for name in sorted(wanted):
        if _SAFETENSORS_NAME.fullmatch(name) is None:
            raise ModelError(f"{index}: weight_map: found '{name}'; expected names of files beside it")
    if absent := sorted(wanted - set(names)):
        raise _missing(folder, names, *absent, of=len(wanted))
    return tuple(sorted(wanted))


def _missing(folder: Path, names: Collection[str], *absent: str, of: int = 1) -> ModelError:
    """The message for weights that are not there, with what a cut download has left."""
    more = f" and {len(absent) - _LISTED} more" if len(absent) > _LISTED else ""
    found = f"{folder / absent[0]}{''.join(f', {name}' for name in absent[1:_LISTED])}{more}"
    many = f", {len(absent)} of {of} files of weights" if of > 1 else ""
    is_or_are = "is" if len(absent) == 1 else "are"
    hidden = folder / ".cache" / "huggingface" / "download"
    unfinished = sorted(name for name in names if name.endswith(_UNFINISHED))
    if hidden.is_dir():
        unfinished += sorted(
            f"{hidden.relative_to(folder) / path.name}" for path in hidden.glob("*.incomplete")
        )
    if unfinished:
        cut = ", ".join(unfinished[:_LISTED])
        words = f"a download goes on or was cut ({cut}): let it end, or start it again"
    elif any(_PICKLED.fullmatch(name) for name in names):
        words = (
            "pickled weights of transformers (pytorch_model*.bin) are not read: fetch the model's "
            "safetensors, or save it again with transformers' save_pretrained"
        )
    elif of > 1:
        words = "the download is not complete: fetch what is missing"
    else:
        words = f"expected {LAYOUTS}"
    return ModelError(f"{found} {is_or_are} missing{many}; {words}")
