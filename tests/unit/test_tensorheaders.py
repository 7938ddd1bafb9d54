"""Guards what files of weights say of themselves: as torch reads them, without it, and with nothing run."""

from __future__ import annotations

import contextlib
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from shardwatt.checkpoints import ModelError
from shardwatt.tensorheaders import HEADER_MAXIMUM_BYTES, TensorHeader, tensor_headers

TENSORS = {
    "norm.weight": torch.ones(8),
    "layers.0.attention.wq.weight": torch.zeros(6, 8, dtype=torch.bfloat16),
    "output.weight": torch.zeros(2, 3, dtype=torch.float16),
    "nothing": torch.zeros(0, 4, dtype=torch.float64),
}
HEADERS = {
    "norm.weight": TensorHeader("fp32", (8,), 32),
    "layers.0.attention.wq.weight": TensorHeader("bf16", (6, 8), 96),
    "output.weight": TensorHeader("fp16", (2, 3), 12),
    "nothing": TensorHeader("fp64", (0, 4), 0),
}


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    path = tmp_path / "consolidated.00.pth"
    torch.save(TENSORS, path)
    return path


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_both_kinds_of_file_are_read_as_they_were_written(pickled: Path, safe: Path) -> None:
    assert tensor_headers(pickled) == HEADERS
    assert tensor_headers(safe) == HEADERS


def test_slices_and_parameters_are_tensors_too(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    whole = torch.zeros(10, 10)
    torch.save({"part": whole[2:5], "turned": whole.T, "parameter": torch.nn.Parameter(whole)}, path)
    shapes = {name: header.shape for name, header in tensor_headers(path).items()}
    assert shapes == {"part": (3, 10), "turned": (10, 10), "parameter": (10, 10)}


def test_torch_is_not_needed(pickled: Path, safe: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom shardwatt.tensorheaders import tensor_headers\n"
        "for name in sys.argv[1:]: assert len(tensor_headers(Path(name))) == 4\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(pickled), str(safe)], check=True)


def refused(path: Path, words: str) -> None:
    with pytest.raises(ModelError) as caught:
        tensor_headers(path)
    assert str(caught.value).startswith(f"{path}: "), str(caught.value)
    assert words in str(caught.value)


class _Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        import os

        return os.system, (self.command,)


def test_nothing_in_a_pickled_file_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "consolidated.00.pth", tmp_path / "harm"
    torch.save({"weight": torch.zeros(2), "more": _Harm(f"touch '{mark}'")}, path)
    refused(path, "holds something else than tensors (it names posix.system)")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "expected tensors by name, found list"),
        ({"weight": torch.zeros(2), "step": 7}, "'step' is no tensor"),
        ({"weight": torch.zeros(2, dtype=torch.complex64)}, "it names torch.ComplexFloatStorage"),
    ],
)
def test_what_is_no_tensor_is_refused(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "consolidated.00.pth"
    torch.save(content, path)
    refused(path, words)


def test_a_cut_file_is_called_one(pickled: Path, safe: Path) -> None:
    for path in (pickled, safe):
        content = path.read_bytes()
        path.write_bytes(content[:-1])
    refused(safe, f"has {len(content) - 1} bytes, and its header speaks of {len(content)}; get a clean copy")
    refused(pickled, "get a clean copy")
    pickled.write_bytes(b"")
    refused(pickled, "was cut")
    safe.write_bytes(b"1234")
    refused(safe, "is no safetensors file")


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(data_offsets=[0, 4])}, "a has 4 bytes, and its shape 8"),
        ({"a": entry(data_offsets=[8, 0])}, "a has -8 bytes"),
        ({"a": entry(data_offsets=[-8, 0])}, "found -8 where a size is expected"),
        ({"a": entry(data_offsets=[1, 9])}, "do not follow each other"),
        ({"a": entry(), "b": entry()}, "do not follow each other"),
        ({"a": entry(shape=[2, 2**70])}, "a has 8 bytes"),
        ({"a": entry(shape=[True, 2])}, "found True where a size is expected"),
        ({"a": entry(shape=2)}, "not iterable"),
        ({"a": entry(dtype="Q4_0")}, "a is of unknown type 'Q4_0'"),
        ({"a": {"dtype": "F32"}}, "shape"),
        ({"a": 3}, "not subscriptable"),
        ([], "no JSON object"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, header: object, words: str) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    refused(path, words)


def test_a_header_longer_than_the_file_or_the_format_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(path, f"a header of {2**62}")
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", HEADER_MAXIMUM_BYTES + 1))
        stream.truncate(2 * HEADER_MAXIMUM_BYTES)
    refused(path, f"a header of {HEADER_MAXIMUM_BYTES + 1}")


def test_a_pickle_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "consolidated.00.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (HEADER_MAXIMUM_BYTES + 1))
    refused(path, "its list of tensors is too long")


@settings(deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_lead_to_anything_but_a_message(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, as_header: bool
) -> None:
    folder = tmp_path_factory.getbasetemp()
    safe = folder / "any.safetensors"
    safe.write_bytes((struct.pack("<Q", len(content)) if as_header else b"") + content)
    pickled = folder / "any.pth"
    with zipfile.ZipFile(pickled, "w") as archive:
        archive.writestr("any/data.pkl", content)
    for path in (safe, pickled):
        with contextlib.suppress(ModelError):
            tensor_headers(path)


def test_references_to_anything_but_numbers_are_refused(tmp_path: Path) -> None:
    class Writer(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return ("module", 1) if obj == "elsewhere" else None

    path = tmp_path / "consolidated.00.pth"
    raw = tmp_path / "data.pkl"
    with raw.open("wb") as stream:
        Writer(stream).dump({"weight": "elsewhere"})
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(raw, "archive/data.pkl")
    refused(path, "it refers to something else than a tensor's numbers")
