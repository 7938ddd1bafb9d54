"""Guards what the plan sees of a checkpoint's tensors: what ranks say that open it, and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tiny import SHAPES, Kind, hugging_face_name, meta_slice, tiny, tiny_weights
from shardwatt.architectures import CATALOGUE, Architecture
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights import open_weights
from shardwatt.engine.weights.slices import slice_of
from shardwatt.errors import CellFailure
from shardwatt.models import Checkpoint, Layout, find_architecture, read_architecture
from shardwatt.tensornames import embedding_rows, shard_shape, tensor_problems, whole_tensors
from small_project import make_checkpoint, make_root

WQ, NORM = "layers.0.attention.wq.weight", "layers.1.ffn_norm.weight"
Q_PROJ, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
INDEX = "model.safetensors.index.json"

Tiny = tuple[Checkpoint, Architecture]
#: Changes the tensors of a file; where it returns false, they are not saved again.
Change = Callable[[dict[str, Any]], object]


def opened(made: Tiny) -> str | None:
    """What the ranks say of a checkpoint that they do not open; None where they open it."""
    checkpoint, architecture = made
    try:
        open_weights(
            ModelOnRank(
                *(architecture, checkpoint, "fp32", "cpu", 0, 1, architecture.vocab_size, frozenset())
            )
        )
    except CellFailure as problem:
        return problem.message
    return None


def rewrite(made: Tiny, change: Change, file: int) -> Path:
    path = made[0].weight_files[file]
    weights = torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)
    change(weights)
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(
    ("layout", "shards", "form"),
    [
        *(("meta", shards, "pth") for shards in (1, 2, 4, 8, 16)),
        ("meta", 4, "safetensors"),
        ("huggingface", 1, "safetensors"),
        ("huggingface", 3, "safetensors"),
    ],
)
def test_nothing_is_wrong_with_what_ranks_open(
    tmp_path: Path, kind: Kind, layout: Layout, shards: int, form: Any
) -> None:
    made = tiny(tmp_path / "a folder", kind, layout, shards, form=form)
    assert opened(made) is None
    assert tensor_problems(*made) == []


@pytest.mark.parametrize("kind", get_args(Kind))
def test_names_and_shapes_are_those_of_saved_models_and_of_the_ranks(kind: Kind) -> None:
    shape, saved, by_rows = SHAPES[kind], tiny_weights(kind), kind == "llama3"
    whole = list(whole_tensors(shape))
    assert {tensor.name: tensor.shape for tensor in whole} == {
        name: tuple(tensor.shape) for name, tensor in saved.items()
    }
    for shards in shape.allowed_shards():
        for tensor in whole:
            assert tensor.theirs == hugging_face_name(tensor.name)
            found = shard_shape(shape, tensor, shards, embedding_by_rows=by_rows)
            assert found == meta_slice(kind, tensor.name, saved[tensor.name], shards - 1, shards).shape
            part = slice_of(shape, tensor.name, shards - 1, shards, embedding_by_rows=by_rows)
            assert found == (len(part.rows), len(part.columns))[2 - len(tensor.shape) :]


def _lose(name: str) -> Change:
    return lambda weights: weights.pop(name)


def _put(name: str, tensor: torch.Tensor) -> Change:
    return lambda weights: weights.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_lose(NORM), [f"{NORM} missing", "expected the 21 tensors that params.json implies"]),
        (_put("layers.2.extra", torch.zeros(1)), ["layers.2.extra not expected"]),
        (_put(WQ, torch.zeros(32, 64)), [f"{WQ}: found shape [32, 64], expected [64, 128] of this shard"]),
        (_put(WQ, torch.zeros(64, 128, dtype=torch.int8)), [WQ, "expected floating-point"]),
        (_put(WQ, torch.zeros(64, 128).half()), [WQ, "expected", "as in consolidated.00"]),
        (_put("norm.weight", torch.ones(1, 128)), ["norm.weight: found shape [1, 128], expected [128]"]),
    ],
    ids=["missing", "extra", "shape", "whole numbers", "type", "norm"],
)
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_what_ranks_refuse_shows_in_metas_headers(
    tmp_path: Path, form: Any, change: Change, words: list[str]
) -> None:
    made = tiny(tmp_path / "a folder", shards=2, form=form)
    path = rewrite(made, change, 1)
    (problem, *_) = tensor_problems(*made)
    refused = opened(made)
    assert refused is not None
    for word in (str(path), *words):
        assert word in problem
    assert words[0] in refused or WQ in refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_lose(UP), [f"{UP} missing", "expected the 21 tensors that config.json implies"]),
        (_put("model.layers.0.self_attn.q_proj.bias", torch.zeros(128)), ["q_proj.bias not expected"]),
        (_put(Q_PROJ, torch.zeros(64, 128)), [f"{Q_PROJ}: found shape [64, 128], expected [128, 128] that"]),
        (_put(Q_PROJ, torch.zeros(128, 128).to(torch.float8_e4m3fn)), [Q_PROJ, "expected floating-point"]),
    ],
    ids=["missing", "extra", "shape", "type"],
)
def test_what_ranks_refuse_shows_in_the_headers_of_transformers(
    tmp_path: Path, change: Change, words: list[str]
) -> None:
    made = tiny(tmp_path / "a folder", layout="huggingface")
    path = rewrite(made, change, 0)
    (problem,) = tensor_problems(*made)
    refused = opened(made)
    assert refused is not None
    for word in (str(path), *words):
        assert word in problem
    assert words[0] in refused


def test_tensors_in_another_file_than_the_index_says_are_told(tmp_path: Path) -> None:
    made = tiny(tmp_path / "a folder", layout="huggingface", shards=3)
    one, other = made[0].weight_files[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    problems = tensor_problems(*made)
    assert [problem.partition(":")[0] for problem in problems] == [str(one), str(other)]
    assert f"{INDEX} says otherwise" in problems[0]
    assert opened(made) is not None
    (made[0].folder / INDEX).unlink()
    assert tensor_problems(*made) == [], "names tell all where no index does"


def test_a_tensor_that_lies_in_two_files_is_told(tmp_path: Path) -> None:
    made = tiny(tmp_path / "a folder", layout="huggingface", shards=2)
    norm = load_file(made[0].weight_files[0])["model.embed_tokens.weight"]
    path = rewrite(made, _put("model.embed_tokens.weight", norm), 1)
    assert f"{path}: model.embed_tokens.weight found, and also in" in tensor_problems(*made)[0]
    assert opened(made) is not None


def test_a_tied_output_layer_is_in_every_shard_or_in_none(tmp_path: Path) -> None:
    made = tiny(tmp_path / "a folder", "llama3", shards=2)
    assert tensor_problems(*made) == []
    rewrite(made, _lose("output.weight"), 1)
    assert "output.weight missing" in tensor_problems(*made)[0]
    rewrite(made, _lose("output.weight"), 0)
    assert tensor_problems(*made) == []
    untied = replace(made[1], tied_embeddings=False)
    assert "output.weight missing" in tensor_problems(made[0], untied)[0]


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize(("kept", "found"), [(7, "7 files"), (4, "4 files"), (1, "1 file")])
def test_last_shards_that_are_missing_show(tmp_path: Path, kind: Kind, kept: int, found: str) -> None:
    checkpoint, architecture = tiny(tmp_path / "a folder", kind, shards=8)
    cut = replace(checkpoint, weights=checkpoint.weights[:kept])
    (problem,) = tensor_problems(cut, architecture)
    assert problem == (
        f"{cut.folder}: found {found} of weights, and the shapes in consolidated.00.pth are those of one of "
        "8; the download is not complete: fetch what is missing"
    )
    assert opened((cut, architecture)) is not None


def test_shards_of_another_checkpoint_beside_it_show(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "a folder", shards=2)
    more = tiny(tmp_path / "another", shards=4)[0]
    for name in more.weights[2:]:
        (checkpoint.folder / name).write_bytes((more.folder / name).read_bytes())
    (problem,) = tensor_problems(replace(checkpoint, weights=more.weights), architecture)
    assert "are those of one of 2; take away those that are not this checkpoint's" in problem


def test_a_file_that_cannot_be_read_is_told_alone_and_without_a_shape(tmp_path: Path) -> None:
    made = tiny(tmp_path / "a folder", shards=2)
    path = made[0].weight_files[1]
    path.write_bytes(path.read_bytes()[:-1000])
    for architecture in (made[1], None):
        (problem,) = tensor_problems(made[0], architecture)
        assert problem.startswith(f"{path}: ")
    path.unlink()
    assert tensor_problems(*made) == [f"{path}: cannot be read: No such file or directory"]


def test_many_alike_are_counted(tmp_path: Path) -> None:
    made = tiny(tmp_path / "a folder", shards=2)
    wider = replace(made[1], hidden_dim=704)
    problems = tensor_problems(made[0], wider)
    assert len(problems) == 2, "one for each file"
    assert "; 5 more tensors are like that" in problems[0]


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    made = tiny(tmp_path / "a folder", shards=2)
    assert tensor_problems(*made) == []
    rewrite(made, _lose(NORM), 0)
    assert tensor_problems(*made) != []


@pytest.mark.parametrize(("kind", "rows"), [("llama1", 320), ("llama3", 512)])
@pytest.mark.parametrize("shards", [1, 4])
def test_the_embedding_says_the_vocabulary_however_it_is_split(
    tmp_path: Path, kind: Kind, rows: int, shards: int
) -> None:
    checkpoint, architecture = tiny(tmp_path / "models" / "mine", kind, shards=shards)
    params = json.loads(checkpoint.params.read_text())
    checkpoint.params.write_text(json.dumps({**params, "vocab_size": -1}))
    assert embedding_rows(checkpoint.weight_files, 128) == rows
    assert read_architecture(checkpoint, vocab_size=77) == architecture
    root = make_root(tmp_path / "project")
    assert find_architecture(root, tmp_path / "models", "mine") == architecture
    checkpoint.weight_files[0].write_bytes(b"weights")
    assert read_architecture(checkpoint, vocab_size=64).vocab_size == 64
    assert find_architecture(root, tmp_path / "models", "mine") is None, "nothing says it"


def test_a_made_up_checkpoint_of_a_large_model_is_right(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "llama-65b", 8)
    names = tuple(sorted(path.name for path in folder.glob("*.pth")))
    checkpoint = Checkpoint(folder, folder / "tokenizer.model", "meta", names)
    assert tensor_problems(checkpoint, CATALOGUE["llama-65b"]) == []


def test_torch_is_not_needed(tmp_path: Path) -> None:
    checkpoint, _ = tiny(tmp_path / "a folder", shards=2)
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from shardwatt.checkpoints import Checkpoint\n"
        "from shardwatt.models import read_architecture\n"
        "from shardwatt.tensornames import tensor_problems\n"
        "folder = Path(sys.argv[1])\n"
        "checkpoint = Checkpoint(folder, folder / 'tokenizer.model', 'meta', tuple(sys.argv[2:]))\n"
        "assert tensor_problems(checkpoint, read_architecture(checkpoint)) == []\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(checkpoint.folder), *checkpoint.weights], check=True)
