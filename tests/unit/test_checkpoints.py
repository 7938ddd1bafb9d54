"""Guards what a folder is taken for: two layouts, and one clear message for a download that was cut."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shardwatt.checkpoints import (
    INDEX_FILE,
    LAYOUTS,
    ModelError,
    layout_of,
    read_object,
    tokenizer_file,
    weight_names,
)

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 4976698672\n"
)
PARTS = [f"model-{number:05d}-of-00006.safetensors" for number in range(1, 7)]


def fill(folder: Path, *names: str) -> Path:
    """A folder with some files of a few bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"{}")
    return folder


def meta(folder: Path, *names: str) -> Path:
    return fill(folder, "params.json", "tokenizer.model", *names)


def hugging_face(folder: Path, *names: str, index: list[str] | None = None) -> Path:
    fill(folder, "config.json", "tokenizer.json", *names)
    if index is not None:
        places = {f"model.layers.{number}.weight": name for number, name in enumerate(index)}
        (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def refusal(folder: Path) -> str:
    layout = layout_of(folder)
    assert layout is not None
    with pytest.raises(ModelError) as caught:
        weight_names(folder, layout)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "layout", "weights"),
    [
        (["consolidated.00.pth"], "meta", ["consolidated.00.pth"]),
        (
            ["consolidated.01.pth", "consolidated.00.pth"],
            "meta",
            ["consolidated.00.pth", "consolidated.01.pth"],
        ),
        (["consolidated.00.safetensors"], "meta", ["consolidated.00.safetensors"]),
        (["consolidated.safetensors"], "meta", ["consolidated.safetensors"]),
        (
            ["consolidated.00.pth", "consolidated.01.pth.part", "consolidated.1.pth"],
            "meta",
            ["consolidated.00.pth"],
        ),
        (["consolidated.00.pth", "consolidated.safetensors"], "meta", ["consolidated.00.pth"]),
        (["model.safetensors"], "huggingface", ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], "huggingface", ["model.safetensors"]),
    ],
)
def test_only_files_of_the_layout_are_weights(
    tmp_path: Path, names: list[str], layout: str, weights: list[str]
) -> None:
    folder = meta(tmp_path, *names) if layout == "meta" else hugging_face(tmp_path, *names)
    assert layout_of(folder) == layout
    assert weight_names(folder, layout) == tuple(weights)


def test_safetensors_go_before_pickled_weights_of_the_same_shards(tmp_path: Path) -> None:
    shards = [f"consolidated.{number:02d}" for number in range(2)]
    folder = meta(tmp_path, *(f"{shard}.{kind}" for shard in shards for kind in ("pth", "safetensors")))
    assert weight_names(folder, "meta") == tuple(f"{shard}.safetensors" for shard in shards)


def test_of_an_index_each_file_is_named_once(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path, *PARTS, index=[*PARTS, *PARTS])
    assert weight_names(folder, "huggingface") == tuple(PARTS)


def test_of_two_layouts_in_one_folder_the_one_with_weights_counts(tmp_path: Path) -> None:
    folder = meta(tmp_path / "both", "config.json", "model.safetensors")
    assert layout_of(folder) == "huggingface"
    fill(folder, "consolidated.00.pth")
    assert layout_of(folder) == "meta"


def test_nothing_is_no_checkpoint(tmp_path: Path) -> None:
    assert layout_of(fill(tmp_path, "README.md", "tokenizer.model")) is None
    assert layout_of(tmp_path / "nowhere") is None


def test_missing_shards_in_the_middle_are_named(tmp_path: Path) -> None:
    names = [f"consolidated.{number:02d}.pth" for number in (0, 1, 3, 4, 6, 7)]
    message = refusal(meta(tmp_path, *names))
    assert message == (
        f"{tmp_path / 'consolidated.02.pth'}, consolidated.05.pth are missing, 2 of 8 files of weights; the "
        "download is not complete: fetch what is missing"
    )


def test_missing_shards_at_the_end_show_in_metas_checklist(tmp_path: Path) -> None:
    folder = meta(tmp_path, "consolidated.00.pth")
    sums = [f"0123456789abcdef0123456789abcdef  consolidated.{number:02d}.pth" for number in range(8)]
    (folder / "checklist.chk").write_text("\n".join([*sums, "fedcba9876543210fedcba9876543210  params.json"]))
    message = refusal(folder)
    assert message.startswith(
        f"{folder / 'consolidated.01.pth'}, consolidated.02.pth, consolidated.03.pth, consolidated.04.pth "
        "and 3 more are missing, 7 of 8 files of weights; "
    )


def test_files_that_an_index_names_and_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path, PARTS[0], index=PARTS)
    message = refusal(folder)
    assert message.startswith(
        f"{folder / PARTS[1]}, {PARTS[2]}, {PARTS[3]}, {PARTS[4]} and 1 more are missing"
    )
    assert "5 of 6 files of weights; the download is not complete" in message


@pytest.mark.parametrize(
    "unfinished",
    [
        "model-00002-of-00006.safetensors.incomplete",
        ".cache/huggingface/download/xyz.4d7a2146.incomplete",
        "model-00002-of-00006.safetensors.aria2",
    ],
)
def test_a_download_that_goes_on_is_called_one(tmp_path: Path, unfinished: str) -> None:
    folder = hugging_face(tmp_path, PARTS[0], unfinished, index=PARTS)
    assert f"a download goes on or was cut ({unfinished}): let it end, or start it again" in refusal(folder)


def test_a_single_file_that_is_being_downloaded_is_not_there_yet(tmp_path: Path) -> None:
    message = refusal(hugging_face(tmp_path, "model.safetensors.incomplete"))
    assert message == (
        f"{tmp_path / 'model.safetensors'} is missing; a download goes on or was cut "
        "(model.safetensors.incomplete): let it end, or start it again"
    )


def test_without_its_index_the_index_is_missing(tmp_path: Path) -> None:
    assert refusal(hugging_face(tmp_path, *PARTS)).startswith(
        f"{tmp_path / INDEX_FILE} is missing; expected "
    )


def test_pickled_weights_of_transformers_are_told_apart(tmp_path: Path) -> None:
    message = refusal(hugging_face(tmp_path, "pytorch_model-00001-of-00002.bin"))
    assert "pickled weights of transformers (pytorch_model*.bin) are not read: fetch the model's" in message


@pytest.mark.parametrize("layout", ["meta", "huggingface"])
def test_weights_without_a_shape_and_a_shape_without_weights_are_told(tmp_path: Path, layout: str) -> None:
    shape, weights = {
        "meta": ("params.json", "consolidated.00.pth"),
        "huggingface": ("config.json", "model.safetensors"),
    }[layout]
    shapeless = fill(tmp_path / "shapeless", weights)
    assert refusal(shapeless) == f"{shapeless / shape} is missing; expected {LAYOUTS}"
    empty = fill(tmp_path / "empty", shape)
    assert refusal(empty) == f"{empty / weights} is missing; expected {LAYOUTS}"


def test_a_pointer_of_git_lfs_is_no_weights_and_no_tokenizer(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path, *PARTS, index=PARTS)
    (folder / PARTS[3]).write_text(POINTER)
    assert refusal(folder) == (
        f"{folder / PARTS[3]} is a git-lfs pointer of {len(POINTER)} bytes and not the file itself; run "
        f"`git lfs pull` in {folder}"
    )
    (folder / "tokenizer.json").write_text(POINTER)
    with pytest.raises(ModelError, match=r"tokenizer\.json is a git-lfs pointer"):
        tokenizer_file(folder, "huggingface")


@pytest.mark.parametrize(
    ("make", "words"), [(os.mkfifo, "is a pipe, a socket or a device"), (os.mkdir, "is a folder")]
)
@pytest.mark.parametrize("name", [PARTS[0], INDEX_FILE])
def test_what_is_no_file_is_refused_and_not_waited_for(
    tmp_path: Path, name: str, make: Callable[[Path], None], words: str
) -> None:
    folder = hugging_face(tmp_path, *PARTS, index=PARTS)
    (folder / name).unlink()
    make(folder / name)
    assert refusal(folder) == f"{folder / name} {words}; expected a file: fetch it again"


def test_a_large_file_is_not_read_for_a_pointer(tmp_path: Path) -> None:
    folder = hugging_face(tmp_path, "model.safetensors")
    (folder / "model.safetensors").write_bytes(POINTER.encode() + b"\0" * 1024)
    assert weight_names(folder, "huggingface") == ("model.safetensors",)


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "x.bin", ""]
)
def test_an_index_names_files_beside_it_and_no_others(tmp_path: Path, place: str) -> None:
    message = refusal(hugging_face(tmp_path, index=[place]))
    assert message == (
        f"{tmp_path / INDEX_FILE}: weight_map: found '{place}'; expected names of files beside it"
    )


@pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_of_nothing_is_refused(tmp_path: Path, content: str) -> None:
    folder = hugging_face(tmp_path, index=PARTS)
    (folder / INDEX_FILE).write_text(content)
    assert "weight_map: expected the file of each tensor" in refusal(folder)


@pytest.mark.parametrize(
    ("layout", "beside", "above", "chosen"),
    [
        ("meta", ["tokenizer.model", "tokenizer.json"], [], "model/tokenizer.model"),
        ("huggingface", ["tokenizer.model", "tokenizer.json"], [], "model/tokenizer.json"),
        ("huggingface", ["tokenizer.model"], ["tokenizer.json"], "model/tokenizer.model"),
        ("meta", [], ["tokenizer.json"], "tokenizer.json"),
        ("meta", [], ["tokenizer.json", "tokenizer.model"], "tokenizer.model"),
    ],
)
def test_the_tokenizer_of_the_layout_is_preferred_and_the_nearer_one(
    tmp_path: Path, layout: str, beside: list[str], above: list[str], chosen: str
) -> None:
    folder = fill(tmp_path / "model", *beside)
    fill(tmp_path, *above)
    assert tokenizer_file(folder, layout) == tmp_path / chosen  # type: ignore[arg-type]


def test_a_missing_tokenizer_is_named_with_where_it_may_be(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    with pytest.raises(ModelError) as caught:
        tokenizer_file(folder, "huggingface")
    assert str(caught.value) == (
        f"{folder / 'tokenizer.json'} is missing; expected the model's own there or one folder up, "
        "tokenizer.json or tokenizer.model"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "cannot be read: "),
        (b"\xff{}", "cannot be read: "),
        (b"[" * 100_000, "cannot be read: "),
        (b"3", "expected a JSON object, found int"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{path}: {words}"):
        read_object(path)
