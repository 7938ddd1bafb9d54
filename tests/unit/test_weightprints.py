"""Guards what weights are known by: other numbers show, touching does not, and little is read."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from shardwatt.weightprints import SAMPLE_BYTES, SAMPLES, weight_print


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


def read_bytes() -> int:
    """Bytes that this process has read from files so far."""
    found = re.search(r"^rchar: ([0-9]+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.safetensors"])
def test_other_numbers_of_the_same_shape_are_another_file(tmp_path: Path, name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = {f"layers.{n}.weight": torch.randn(256, 1024, generator=generator) for n in range(8)}
    before = weight_print(save(tmp_path / name, weights))
    size = (tmp_path / name).stat().st_size
    merged = {**weights, "layers.3.weight": weights["layers.3.weight"] * 1.001}
    assert weight_print(save(tmp_path / name, merged)) != before
    assert (tmp_path / name).stat().st_size == size
    assert weight_print(save(tmp_path / name, weights)) == before


def test_one_number_of_a_file_of_torch_shows_wherever_it_is(tmp_path: Path) -> None:
    """In a zip file as torch 1 wrote them, with no sum over all at its end."""
    path = tmp_path / "consolidated.00.pth"

    def save_with(number: int) -> Path:
        numbers = bytearray(4 * SAMPLES * SAMPLE_BYTES)
        numbers[2 * SAMPLE_BYTES] = number  # between the first two samples
        with zipfile.ZipFile(path, "w") as archive:
            for n in range(801):  # on both sides more than a sample
                archive.writestr(zipfile.ZipInfo(f"archive/data/{n}"), bytes(numbers) if n == 400 else b"")
        return path

    assert weight_print(save_with(0)) != weight_print(save_with(1))


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.safetensors"])
def test_touching_and_moving_changes_nothing(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, {"norm.weight": torch.ones(64)})
    before = weight_print(path)
    os.utime(path, (1, 1))
    assert weight_print(path) == before
    (tmp_path / "elsewhere").mkdir()
    assert weight_print(path.rename(tmp_path / "elsewhere" / name)) == before


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x05\x06" + bytes(18), b"\xff" * 100])
@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.safetensors"])
def test_a_damaged_file_has_a_print_too(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    before = weight_print(tmp_path / name)
    (tmp_path / name).write_bytes(content + b"x")
    assert weight_print(tmp_path / name) != before


@pytest.mark.parametrize("name", ["consolidated.00.pth", "model.safetensors"])
def test_little_of_a_large_file_is_read_and_once(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, {"norm.weight": torch.ones(64)})
    os.truncate(path, 30 * 10**9)  # a hole: it takes no place on the disk
    before = read_bytes()
    found = weight_print(path)
    first = read_bytes()
    assert first - before < 2 * SAMPLES * SAMPLE_BYTES
    assert weight_print(path) == found
    assert read_bytes() - first < SAMPLE_BYTES
