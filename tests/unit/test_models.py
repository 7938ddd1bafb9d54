"""Guards how checkpoints are found and told apart, in any layout and any number of saved shards."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardwatt.architectures import CATALOGUE, ArchitectureError, RopeScaling
from shardwatt.checkpoints import ModelError
from shardwatt.models import (
    Checkpoint,
    declared_eos_ids,
    find_architecture,
    find_checkpoint,
    fingerprint,
    load_recipe,
    made_checkpoint,
    open_checkpoint,
    read_architecture,
    recipe_file,
    unknown_shape,
)
from small_project import PARAMS_65B, make_checkpoint, make_root, write_yaml

RECIPE: dict[str, Any] = {
    "about": "for tests",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "mean_response_tokens": 8,
    "shards": [1, 2],
}

#: TinyLlama 1.1B's config.json, less what does not tell its shape.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
}
PARTS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]


def make_hugging_face(folder: Path, weights: list[str] | None = None, **changes: Any) -> Path:
    """Files of a checkpoint in Hugging Face's layout, with a few bytes in place of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "tokenizer.json").write_text("{}")
    for name in weights or ["model.safetensors"]:
        (folder / name).write_bytes(b"weights")
    if weights is not None:
        places = {f"tensor {number}": name for number, name in enumerate(weights)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


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
    found = find_checkpoint(root, models, "llama-65b", 4)
    weights = tuple(f"consolidated.{n:02d}.pth" for n in range(8))
    assert found == Checkpoint(folder, models / "tokenizer.model", "meta", weights)
    assert all(path.is_file() for path in found.files)


@pytest.mark.parametrize("weights", [None, PARTS])
def test_a_download_of_hugging_face_is_found(root: Path, models: Path, weights: list[str] | None) -> None:
    folder = make_hugging_face(models / "tinyllama", weights)
    found = find_checkpoint(root, models, "tinyllama", 2)
    names = tuple(weights or ["model.safetensors"])
    assert found == Checkpoint(folder, folder / "tokenizer.json", "huggingface", names)
    assert found.params == folder / "config.json"
    assert find_architecture(root, models, "tinyllama") == CATALOGUE["tinyllama-1.1b"]
    assert read_architecture(found) == CATALOGUE["tinyllama-1.1b"]


@pytest.mark.parametrize("shards", [1, 4, 8, 16])
def test_a_checkpoint_runs_at_any_shard_count_however_it_is_saved(
    root: Path, models: Path, shards: int
) -> None:
    folder = make_checkpoint(models / "llama-65b", 8)
    assert find_checkpoint(root, models, "llama-65b", shards).folder == folder
    assert len(find_checkpoint(root, models, "llama-65b", shards).weights) == 8


def test_the_tokenizer_beside_the_weights_goes_before_the_one_above(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "llama-65b", 8)
    (models / "tokenizer.model").write_bytes(b"another")
    assert find_checkpoint(root, models, "llama-65b", 8).tokenizer == folder / "tokenizer.model"


def test_each_shard_count_may_have_a_folder_of_its_own(root: Path, models: Path) -> None:
    whole = make_checkpoint(models / "llama-65b", 8)
    split = make_checkpoint(whole / "shards-16", 16)
    assert find_checkpoint(root, models, "llama-65b", 8).folder == whole
    assert find_checkpoint(root, models, "llama-65b", 4).folder == whole
    assert find_checkpoint(root, models, "llama-65b", 16).folder == split


def test_without_a_folder_of_its_own_the_fewest_saved_shards_are_read(root: Path, models: Path) -> None:
    for shards in (2, 16):
        make_checkpoint(models / "mine" / f"shards-{shards}", shards)
    (models / "mine" / "shards-1").mkdir()
    (models / "mine" / "shards-old").mkdir()
    assert find_checkpoint(root, models, "mine", 16).folder.name == "shards-16"
    assert find_checkpoint(root, models, "mine", 4).folder.name == "shards-2"
    assert refusal(root, models, "mine", 1).startswith(
        f"model 'mine': {models / 'mine' / 'shards-1'} holds no checkpoint; expected Meta's layout"
    )


def test_a_recipes_checkpoint_need_not_exist_yet(root: Path, models: Path) -> None:
    write_yaml(recipe_file(root, "tiny"), {**RECIPE, "shards": [2, 1]})
    made = find_checkpoint(root, models, "tiny", 1)
    assert made == made_checkpoint(models, "tiny", 1)
    assert made.folder == models / "tiny" / "shards-1"
    assert made.weights == ("consolidated.00.pth",)
    assert find_checkpoint(root, models, "tiny", 4) == made_checkpoint(models, "tiny", 2), "the first listed"


def test_a_recipe_is_made_once_for_all_shard_counts_unless_it_says_more(root: Path, models: Path) -> None:
    write_yaml(recipe_file(root, "tiny"), {key: value for key, value in RECIPE.items() if key != "shards"})
    for shards in (1, 2, 4):
        assert find_checkpoint(root, models, "tiny", shards) == made_checkpoint(models, "tiny", 1)


def test_an_unknown_model_gets_a_suggestion_from_recipes_and_folders(root: Path, models: Path) -> None:
    write_yaml(recipe_file(root, "tiny"), RECIPE)
    make_checkpoint(models / "llama-65b", 8)
    (models / ".lama-65b-0a1b2c3d").mkdir()
    message = refusal(root, models, "lama-65b", 8)
    assert message.startswith("unknown model 'lama-65b'; did you mean 'llama-65b'?; ")
    assert message.endswith("known: llama-65b, tiny")


def test_a_models_folder_that_is_not_there_is_no_crash(root: Path, models: Path) -> None:
    assert "known: none" in refusal(root, models, "mine", 8)


@pytest.mark.parametrize("model", ["llama-65b", "my-9b"])
def test_of_a_model_whose_shape_is_known_the_checkpoint_is_missed_alone(
    root: Path, models: Path, model: str
) -> None:
    shape = {"dim": 4096, "n_layers": 40, "n_heads": 32, "hidden_dim": 14_336, "vocab_size": 64_000}
    write_yaml(root / "config" / "architectures.yaml", {"architectures": {"my-9b": shape}})
    assert refusal(root, models, model, 8) == (
        f"no checkpoint of model '{model}': expected one in {models / model} (the site's key `models`, or "
        "SHARDWATT_MODELS); `shardwatt plan STUDY` forecasts without one"
    )


def test_a_shape_that_is_not_known_gets_a_suggestion_or_else_the_list(root: Path, models: Path) -> None:
    write_yaml(recipe_file(root, "tiny"), RECIPE)
    (models / "qwen-7b").mkdir(parents=True)
    near, far = (unknown_shape(root, models, name) for name in ("llama-65", "qwen-7b"))
    assert near.startswith("the shape of model 'llama-65' is not known here; did you mean 'llama-65b'?; put ")
    assert far.startswith(
        f"the shape of model 'qwen-7b' is not known here; known: {', '.join(CATALOGUE)}, tiny; put "
    )


def test_a_folder_without_a_checkpoint_is_not_called_unknown(root: Path, models: Path) -> None:
    (models / "mine").mkdir(parents=True)
    assert refusal(root, models, "mine", 1).startswith(
        f"model 'mine': {models / 'mine'} holds no checkpoint; expected Meta's layout (params.json, "
    )


def test_a_folder_of_checkpoints_is_told_by_theirs(models: Path) -> None:
    for shards in (10, 2):
        make_checkpoint(models / "mine" / f"shards-{shards}", shards)
    (models / "mine" / "shards-4").mkdir()
    with pytest.raises(ModelError) as caught:
        open_checkpoint(models / "mine")
    assert str(caught.value) == (
        f"{models / 'mine'} holds no checkpoint itself; shards-2 and shards-10 in it do: name one of them"
    )


@pytest.mark.parametrize(
    ("said", "ids"),
    [
        ({}, {2}),
        ({"config": {"eos_token_id": [128001, 128008]}}, {128001, 128008}),
        ({"generation": {"eos_token_id": [128001, 128009]}}, {128001, 128009}),
        ({"generation": {"eos_token_id": 7}}, {7}),
        ({"generation": {"eos_token_id": None}}, {2}),
        ({"generation": {"temperature": 0.6}, "config": {"eos_token_id": None}}, None),
        ({"config": {"eos_token_id": 0}}, {0}),
    ],
)
def test_the_ends_of_a_response_are_those_that_the_checkpoint_declares(
    tmp_path: Path, said: dict[str, dict[str, Any]], ids: set[int] | None
) -> None:
    folder = make_hugging_face(tmp_path / "model", **said.get("config", {}))
    if "generation" in said:
        (folder / "generation_config.json").write_text(json.dumps(said["generation"]))
    assert declared_eos_ids(open_checkpoint(folder)) == ids


@pytest.mark.parametrize("wrong", ["2", [], [True], [1, -1], 2.0])
def test_ends_that_are_no_tokens_numbers_are_refused(tmp_path: Path, wrong: object) -> None:
    checkpoint = open_checkpoint(make_hugging_face(tmp_path / "model", eos_token_id=wrong))
    with pytest.raises(ModelError, match=r"config\.json: eos_token_id: found .*; expected a token's number"):
        declared_eos_ids(checkpoint)


def test_ends_stay_with_a_copy_in_metas_layout(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", 1)
    assert declared_eos_ids(open_checkpoint(folder)) is None
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert declared_eos_ids(open_checkpoint(folder)) == frozenset({5})


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_end_that_no_row_of_the_embedding_stands_for_is_refused(tmp_path: Path, file: str) -> None:
    """Such a token is never drawn: every response would run to its full length without a word."""
    folder = make_hugging_face(tmp_path / "model")
    said = {**CONFIG, "eos_token_id": [2, 32_000, 999_999]}
    (folder / file).write_text(json.dumps(said))
    checkpoint = open_checkpoint(folder)
    with pytest.raises(ModelError) as caught:
        declared_eos_ids(checkpoint, 32_000)
    assert str(caught.value) == (
        f"{folder / file}: eos_token_id: found 32000, 999999, and the model's vocabulary has 32000 rows; "
        "expected ids below that: put the model's own file there"
    )
    assert declared_eos_ids(checkpoint, 1_000_000) == frozenset({2, 32_000, 999_999})


def test_scaled_rotary_frequencies_come_from_either_layout(tmp_path: Path) -> None:
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    theirs = make_hugging_face(
        tmp_path / "theirs", rope_scaling={**scaled, "original_max_position_embeddings": 8192}
    )
    ours = make_checkpoint(tmp_path / "ours", 1, {**PARAMS_65B, "use_scaled_rope": True})
    assert read_architecture(open_checkpoint(theirs)).rope_scaling == RopeScaling("llama3", 8.0)
    assert read_architecture(open_checkpoint(ours), 32_000).rope_scaling is not None


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


def test_the_saved_embedding_says_the_vocabulary_before_the_catalogue(root: Path, models: Path) -> None:
    folder = make_checkpoint(models / "llama-65b", 8, {**PARAMS_65B, "vocab_size": 32_016})
    (folder / "params.json").write_text(json.dumps(PARAMS_65B))
    shape = find_architecture(root, models, "llama-65b")
    assert shape is not None
    assert shape.vocab_size == 32_016
    assert read_architecture(open_checkpoint(folder), 32_000) == shape
    (folder / "consolidated.03.pth").unlink()
    assert find_architecture(root, models, "llama-65b") == CATALOGUE["llama-65b"]


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


def test_a_wrong_config_json_is_refused(root: Path, models: Path) -> None:
    make_hugging_face(models / "theirs", model_type="gpt2")
    with pytest.raises(ArchitectureError, match=r"config\.json: model_type: found 'gpt2'"):
        find_architecture(root, models, "theirs")


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
    "name",
    [
        *("params.json", "tokenizer.model", "consolidated.00.pth", "consolidated.01.pth", "checklist.chk"),
        "SHA256SUMS",
    ],
)
def test_other_content_changes_the_fingerprint(root: Path, models: Path, name: str) -> None:
    folder = make_checkpoint(models / "mine", 2)
    checkpoint = find_checkpoint(root, models, "mine", 2)
    before = fingerprint(root, checkpoint, "mine")
    with (folder / name).open("ab") as stream:
        stream.write(b" ")
    assert fingerprint(root, checkpoint, "mine") != before


@pytest.mark.parametrize("name", ["consolidated.01.pth", "params.json", "tokenizer.model"])
def test_other_content_of_the_same_size_changes_the_fingerprint(root: Path, models: Path, name: str) -> None:
    path = make_checkpoint(models / "mine", 2) / name
    checkpoint = find_checkpoint(root, models, "mine", 2)
    before = fingerprint(root, checkpoint, "mine")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert fingerprint(root, checkpoint, "mine") != before


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", PARTS[1]),
        "model.safetensors.index.json",
    ],
)
def test_other_content_changes_the_fingerprint_in_hugging_faces_layout(
    root: Path, models: Path, name: str
) -> None:
    folder = make_hugging_face(models / "mine", PARTS)
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
