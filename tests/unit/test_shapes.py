"""Guards shapes that users add: where they count, what they must say, and the project's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardwatt.architectures import CATALOGUE, ArchitectureError
from shardwatt.models import find_architecture, unknown_shape
from shardwatt.shapes import own_shapes, shapes_file
from small_project import PARAMS_65B, make_checkpoint, make_root, write_yaml

ROOT = Path(__file__).parents[2]

SHAPE: dict[str, Any] = {"dim": 96, "n_layers": 2, "n_heads": 12, "hidden_dim": 192, "vocab_size": 480}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path / "project")


def write(root: Path, **shapes: dict[str, Any]) -> Path:
    return write_yaml(shapes_file(root), {"architectures": shapes})


def refusal(root: Path, **changes: Any) -> str:
    path = write(root, mine={**SHAPE, **changes})
    with pytest.raises(ArchitectureError) as caught:
        own_shapes(root)
    file, _, message = str(caught.value).partition(": ")
    assert file == str(path)
    return message


def test_a_project_needs_no_shapes_of_its_own(root: Path) -> None:
    assert own_shapes(root) == {}
    assert find_architecture(root, root / "models", "mine") is None


def test_what_a_shape_leaves_out_is_that_of_llama_1(root: Path) -> None:
    write(root, mine=SHAPE, wide={**SHAPE, "n_kv_heads": 4, "head_size": 16, "tied_embeddings": True})
    shapes = own_shapes(root)
    mine = shapes["mine"]
    assert (mine.n_kv_heads, mine.head_dim, mine.context, mine.tied_embeddings) == (12, 8, 2048, False)
    wide = replace(mine, n_kv_heads=4, head_size=16, tied_embeddings=True)
    assert shapes["wide"] == wide
    assert wide.head_dim == 16


def test_a_shape_goes_before_the_catalogue_and_behind_the_models_files(root: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    write(root, mine=SHAPE, **{"llama-65b": SHAPE})
    assert find_architecture(root, models, "mine") == own_shapes(root)["mine"]
    assert find_architecture(root, models, "llama-65b") == own_shapes(root)["mine"]
    assert find_architecture(root, models, "llama-13b") == CATALOGUE["llama-13b"]
    make_checkpoint(models / "llama-65b", 8, {**PARAMS_65B, "vocab_size": 32_000})
    assert find_architecture(root, models, "llama-65b") == CATALOGUE["llama-65b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": 2},
            "architectures.mine.layers: unknown key; did you mean 'n_layers'?; allowed: context, dim, "
            "head_size, hidden_dim, n_heads, n_kv_heads, n_layers, source, tied_embeddings, vocab_size",
        ),
        ({"dim": 0}, "architectures.mine.dim: found 0; expected at least 1"),
        ({"n_layers": 100_000}, "architectures.mine.n_layers: found 100000; expected at most 16384"),
        ({"vocab_size": "32k"}, "architectures.mine.vocab_size: found '32k'; expected a whole number"),
        (
            {"n_heads": 10},
            "architectures.mine: dim 96, n_heads 10, n_kv_heads 10: expected heads that divide dim, unless "
            "head_size says how wide they are, and KV heads that divide heads",
        ),
        (
            {"n_kv_heads": 5},
            "architectures.mine: dim 96, n_heads 12, n_kv_heads 5: expected heads that divide dim, unless "
            "head_size says how wide they are, and KV heads that divide heads",
        ),
    ],
)
def test_a_mistake_gets_one_message(root: Path, changes: dict[str, Any], message: str) -> None:
    assert refusal(root, **changes) == message


def test_a_name_that_no_study_could_say_is_refused(root: Path) -> None:
    write(root, **{"My Model": SHAPE})
    with pytest.raises(ArchitectureError, match="lower-case letters and digits"):
        own_shapes(root)


def test_an_unknown_model_gets_a_suggestion_from_shapes_folders_and_the_catalogue(
    root: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    write(root, **{"my-9b": SHAPE})
    make_checkpoint(models / "vicuna", 1)
    for unknown, known in (("my-8b", "my-9b"), ("vicunia", "vicuna"), ("lama-65b", "llama-65b")):
        assert f"did you mean '{known}'?" in unknown_shape(root, models, unknown)


@pytest.mark.parametrize(("name", "billions"), [("codellama-34b", 33.7), ("yi-34b", 34.4)])
def test_the_projects_own_shapes_add_up_to_the_published_number_of_weights(
    name: str, billions: float
) -> None:
    assert round(own_shapes(ROOT)[name].parameters / 1e9, 1) == billions
