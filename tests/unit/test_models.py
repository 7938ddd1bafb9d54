"""Guards how checkpoints are found and told apart: Meta's own layout, one message for what is missing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardwatt.architectures import CATALOGUE, ArchitectureError
from shardwatt.models import (
    Checkpoint,
    ModelError,
    find_architecture,
    find_checkpoint,
    fingerprint,
    load_recipe,
    made_checkpoint,
    recipe_file,
)
from small_project import make_checkpoint, make_root, write_yaml

RECIPE: dict[str, Any] = {
    "about": "for tests",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "mean_response_tokens": 8,
    "shards": [1, 2],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "my project")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def refusal(root: Path, models: Path, model: str, shards: int) -> str:
    with pytest.raises(ModelError) as caught:
        find_checkpoint(root, models, model, shards)
    return str(caught.value)


def test_a_download_of_meta_is_found_with_its_tokenizer_one_folder_up(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "llama-65b", 8)
    shutil.move(folder / "tokenizer.model", models)
    found = find_checkpoint(root, models, "llama-65b", 8)
    assert found == Checkpoint(folder, models / "tokenizer.model", 8)
    assert [path.name for path in found.shard_files] == [f"consolidated.{n:02d}.pth" for n in range(8)]
    assert all(path.is_file() for path in found.files)


def test_the_tokenizer_beside_the_weights_goes_before_the_one_above(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "llama-65b", 8)
    (models / "tokenizer.model").write_bytes(b"another")
    assert find_checkpoint(root, models, "llama-65b", 8).tokenizer == folder / "tokenizer.model"


def test_each_shard_count_may_have_a_folder_of_its_own(root: Path, models: Path) -> None:
    whole = make_checkpoint(models / "llama-65b", 8)
    split = make_checkpoint(whole / "shards-16", 16)
    assert find_checkpoint(root, models, "llama-65b", 8).folder == whole
    assert find_checkpoint(root, models, "llama-65b", 16).folder == split


def test_a_recipes_checkpoint_need_not_exist_yet(root: Path, models: Path) -> None:
    write_yaml(recipe_file(root, "tiny"), RECIPE)
    assert find_checkpoint(root, models, "tiny", 2) == made_checkpoint(models, "tiny", 2)
    assert refusal(root, models, "tiny", 4) == (
        "model 'tiny' is made in 1, 2 shards, and the study asks for 4; "
        f"add it to `shards` in {recipe_file(root, 'tiny')}"
    )


def test_an_unknown_model_gets_a_suggestion_from_recipes_and_folders(root: Path, models: Path) -> None:
    write_yaml(recipe_file(root, "tiny"), RECIPE)
    make_checkpoint(models / "llama-65b", 8)
    message = refusal(root, models, "lama-65b", 8)
    assert message.startswith("unknown model 'lama-65b'; did you mean 'llama-65b'?; ")
    assert message.endswith("known: llama-65b, tiny")


def test_a_models_folder_that_is_not_there_is_no_crash(root: Path, models: Path) -> None:
    assert "known: none" in refusal(root, models, "llama-65b", 8)


def test_another_shard_count_is_told_with_what_to_do(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "llama-65b", 8)
    assert refusal(root, models, "llama-65b", 4) == (
        f"model 'llama-65b' in {folder} is saved in 8 shards, and the study asks for 4; "
        f"use shards: 8, or put a checkpoint of 4 shards into {folder / 'shards-4'}"
    )


def test_a_model_saved_in_other_counts_alone_is_not_called_unknown(root: Path, models: Path) -> None:
    make_checkpoint(models / "mine" / "shards-1", 1)
    make_checkpoint(models / "mine" / "shards-2", 2)
    assert refusal(root, models, "mine", 4) == (
        f"model 'mine' in {models / 'mine'} is saved as shards-1, shards-2, and the study asks for "
        f"shards: 4; put a checkpoint of 4 shards into {models / 'mine' / 'shards-4'}"
    )


@pytest.mark.parametrize("name", ["params.json", "tokenizer.model"])
def test_a_missing_file_is_named(root: Path, models: Path, name: str) -> None:
    folder = make_checkpoint(models / "mine", 2)
    (folder / name).unlink()
    message = refusal(root, models, "mine", 2)
    assert message.startswith("model 'mine': ")
    assert f"{name} is missing; expected Meta's layout" in message


def test_a_gap_in_the_shards_is_named(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "mine", 3)
    (folder / "consolidated.01.pth").unlink()
    assert "consolidated.01.pth is missing" in refusal(root, models, "mine", 2)


def test_files_that_only_look_like_shards_are_not_counted(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "mine", 1)
    for name in ("consolidated.01.pth.part", "consolidated.safetensors", "consolidated.1.pth"):
        (folder / name).write_bytes(b"")
    assert find_checkpoint(root, models, "mine", 1).shards == 1


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that may not be entered; root, who may enter any, becomes another user meanwhile."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(was)
        folder.chmod(0o700)
        folder.rmdir()


def test_a_models_folder_that_may_not_be_read_is_no_crash(forbidden: Path) -> None:
    nowhere = Path("/nowhere")
    assert refusal(nowhere, forbidden, "mine", 1) == (
        f"model 'mine': {forbidden / 'mine' / 'shards-1'}: Permission denied"
    )
    with pytest.raises(ModelError, match="Permission denied"):
        find_architecture(nowhere, forbidden, "mine")


def test_a_models_shape_comes_from_its_files_before_the_catalogue(root: Path, models: Path) -> None:
    assert find_architecture(root, models, "llama-7b") == CATALOGUE["llama-7b"]
    assert find_architecture(root, models, "mine") is None
    make_checkpoint(models / "mine" / "shards-2", 2)
    assert find_architecture(root, models, "mine") == CATALOGUE["llama-65b"]


def test_a_recipes_shape_is_known_before_it_is_made(root: Path, models: Path) -> None:
    write_yaml(recipe_file(root, "tiny"), {**RECIPE, "context": 128, "vocab_size": 512})
    shape = find_architecture(root, models, "tiny")
    assert shape is not None
    assert (shape.dim, shape.n_heads, shape.context, shape.vocab_size) == (32, 4, 128, 512)
    assert shape.hidden_dim == 96, "two thirds of 4 x 32, rounded up to a multiple of 32"


def test_a_wrong_params_json_is_refused(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "mine", 1, {"dim": 32, "n_heads": 3, "n_layers": 1, "vocab_size": 512})
    with pytest.raises(ArchitectureError, match="n_heads 3"):
        find_architecture(root, models, "mine")
    (folder / "params.json").write_text("{")
    with pytest.raises(ModelError, match=r"params\.json: cannot be read: "):
        find_architecture(root, models, "mine")
    (folder / "params.json").write_text("[]")
    with pytest.raises(ModelError, match=r"params\.json: expected a JSON object, found list"):
        find_architecture(root, models, "mine")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_head": 4}, "n_head: unknown key; did you mean 'n_heads'?; allowed: about, context, dim"),
        ({"dim": 1}, "dim: found 1; expected at least 2"),
        ({"shards": []}, "shards: found []; expected at least one entry"),
        ({"shards": 2}, "shards: found 2; expected a list"),
        ({"shards": [1, 0]}, "shards.1: found 0; expected at least 1"),
        ({"mean_response_tokens": 1}, "mean_response_tokens: found 1; expected more than 1"),
        ({"vocab_size": 32}, "vocab_size: found 32; expected at least 300"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(root: Path, changes: dict[str, Any], words: str) -> None:
    path = write_yaml(recipe_file(root, "tiny"), {**RECIPE, **changes})
    with pytest.raises(ModelError) as caught:
        load_recipe(root, "tiny")
    assert str(caught.value).startswith(f"{path}: {words}")


def test_touching_a_checkpoint_does_not_change_its_fingerprint(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "mine", 2)
    checkpoint = find_checkpoint(root, models, "mine", 2)
    before = fingerprint(root, checkpoint, "mine")
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert fingerprint(root, checkpoint, "mine") == before
    copy = shutil.copytree(folder, models / "elsewhere")
    assert fingerprint(root, find_checkpoint(root, models, "elsewhere", 2), "elsewhere") == before, copy


@pytest.mark.parametrize(
    "name", ["params.json", "tokenizer.model", "consolidated.00.pth", "consolidated.01.pth", "checklist.chk"]
)
def test_other_content_changes_the_fingerprint(root: Path, models: Path, name: str) -> None:
    folder = make_checkpoint(models / "mine", 2)
    checkpoint = find_checkpoint(root, models, "mine", 2)
    before = fingerprint(root, checkpoint, "mine")
    with (folder / name).open("ab") as stream:
        stream.write(b" ")
    assert fingerprint(root, checkpoint, "mine") != before


def test_a_recipe_and_its_shards_are_its_fingerprint(root: Path, models: Path) -> None:
    path = write_yaml(recipe_file(root, "tiny"), RECIPE)
    prints = {fingerprint(root, made_checkpoint(models, "tiny", n), "tiny") for n in (1, 2)}
    assert len(prints) == 2
    os.utime(path, (1, 1))
    assert fingerprint(root, made_checkpoint(models, "tiny", 1), "tiny") in prints
    write_yaml(path, {**RECIPE, "seed": 2})
    assert fingerprint(root, made_checkpoint(models, "tiny", 1), "tiny") not in prints


def test_a_file_that_went_missing_has_no_fingerprint(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "mine", 1)
    checkpoint = find_checkpoint(root, models, "mine", 1)
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(ModelError, match=r"model 'mine': .*consolidated\.00\.pth: No such file or directory"):
        fingerprint(root, checkpoint, "mine")
