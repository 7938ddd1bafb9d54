"""What a checkpoint holds more than once is the same each time; what cannot be is named."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints_tiny import Kind, tiny, tiny_weights
from shardwatt.architectures import Architecture
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.reshard import reshard
from shardwatt.engine.weights import RankWeights, open_weights
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint

WK = "layers.1.attention.wk.weight"
NORM = "layers.1.ffn_norm.weight"
UP = "layers.1.feed_forward.w3.weight"

Tiny = tuple[Checkpoint, Architecture]


def opened(made: Tiny, rank: int = 0, ranks: int = 1) -> RankWeights:
    checkpoint, architecture = made
    return open_weights(
        ModelOnRank(
            *(architecture, checkpoint, "fp32", "cpu", rank, ranks, architecture.vocab_size, frozenset({2}))
        )
    )


def read(weights: RankWeights, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    destination = torch.empty(weights.shape(name), dtype=dtype)
    weights.copy_to(name, destination)
    return destination


def rewrite(made: Tiny, file: int, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the tensors of a file and save them again."""
    path = made[0].weight_files[file]
    weights = torch.load(path, weights_only=True) if path.suffix == ".pth" else load_file(path)
    change(weights)
    if path.suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    return path


def refusals(made: Tiny, ranks: int) -> list[CellFailure]:
    """What each of so many ranks says that refuses to open a checkpoint."""
    found = []
    for rank in range(ranks):
        try:
            opened(made, rank, ranks)
        except CellFailure as failure:
            found.append(failure)
    return found


@pytest.mark.parametrize("ranks", [1, 4, 16])
def test_an_output_layer_of_its_own_beside_tied_embeddings_is_refused(tmp_path: Path, ranks: int) -> None:
    made = tiny(tmp_path / "model", "llama3", "huggingface")
    other = tiny_weights("llama3")["tok_embeddings.weight"].clone()
    other[-1, -1] += 1
    path = rewrite(made, 0, lambda weights: weights.update({"lm_head.weight": other}))
    (failure,) = refusals(made, ranks)
    assert failure.reason is Reason.BAD_CHECKPOINT
    assert f"{path}: lm_head.weight: found an output layer of its own" in failure.message
    assert "set tie_word_embeddings to false" in failure.message
    with pytest.raises(CellFailure, match="output layer of its own"):
        reshard(*made, tmp_path / "copy", layout="meta")
    assert not (tmp_path / "copy").exists()
    untied = (made[0], replace(made[1], tied_embeddings=False))
    assert torch.equal(read(opened(untied), "output.weight"), other)


@pytest.mark.parametrize("shards", [1, 4])
def test_an_output_layer_of_metas_is_compared_too(tmp_path: Path, shards: int) -> None:
    made = tiny(tmp_path / "model", "llama3", shards=shards)
    assert refusals(made, 4) == []
    rewrite(made, shards - 1, lambda weights: weights["output.weight"][0].fill_(9))
    (failure,) = refusals(made, 1)
    assert "set tied_embeddings to false" in failure.message


def test_an_output_layer_that_is_the_embedding_may_be_saved_in_another_precision(tmp_path: Path) -> None:
    made = tiny(tmp_path / "model", "llama3", "huggingface", dtype=torch.bfloat16)
    same = tiny_weights("llama3", torch.bfloat16)["tok_embeddings.weight"].float()
    rewrite(made, 0, lambda weights: weights.update({"lm_head.weight": same}))
    assert torch.equal(read(opened(made), "output.weight"), same)


def test_an_output_layer_in_some_shards_alone_is_named(tmp_path: Path) -> None:
    made = tiny(tmp_path / "model", "llama3", shards=2)
    rewrite(made, 0, lambda weights: weights.pop("output.weight"))
    (failure,) = refusals(made, 1)
    assert "output.weight not expected" in failure.message


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
@pytest.mark.parametrize("shard", [0, 1, 3])
def test_norms_that_differ_between_shards_are_refused(tmp_path: Path, shard: int, ranks: int) -> None:
    made = tiny(tmp_path / "model", "llama2-70b", shards=4)
    assert refusals(made, ranks) == []
    rewrite(made, shard, lambda weights: weights[NORM][-1].add_(1))
    found = refusals(made, ranks)
    assert found
    for failure in found:
        assert failure.reason is Reason.BAD_CHECKPOINT
        assert f"{NORM}: found other numbers than in consolidated.00.pth" in failure.message


def test_key_and_value_heads_that_differ_between_shards_are_refused_by_who_reads_all(tmp_path: Path) -> None:
    made = tiny(tmp_path / "model", "llama2-70b", shards=16)
    assert read(opened(made), WK).shape == (32, 128)
    path = rewrite(made, 6, lambda weights: weights[WK][-1].add_(1))
    whole = opened(made)
    with pytest.raises(CellFailure, match=f"{path}: {WK}: .*than in consolidated.04.pth") as caught:
        read(whole, WK)
    assert caught.value.reason is Reason.BAD_CHECKPOINT
    read(whole, WK.replace("wk", "wv"))
    with pytest.raises(CellFailure, match=WK):
        reshard(*made, tmp_path / "copy", layout="meta", shards=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("number", [65_520.0, -1e6, float("inf"), float("nan")])
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
def test_a_number_that_fp16_cannot_hold_is_named(tmp_path: Path, number: float, saved: torch.dtype) -> None:
    made = tiny(tmp_path / "model", layout="huggingface", dtype=saved)

    def change(weights: dict[str, Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][200, 5] = number

    path = rewrite(made, 0, change)
    weights = opened(made, 1, 2)
    with pytest.raises(
        CellFailure, match=f"{path}: model.layers.1.mlp.up_proj.weight: found .*e|n"
    ) as caught:
        read(weights, UP, torch.float16)
    assert caught.value.reason is Reason.BAD_CHECKPOINT
    assert "fp16 ends at 65504" in caught.value.message
    read(weights, UP, torch.bfloat16)
    read(weights, UP)
    read(opened(made, 0, 2), UP, torch.float16)


def test_the_largest_numbers_of_fp16_are_read_into_it(tmp_path: Path) -> None:
    made = tiny(tmp_path / "model", layout="huggingface")

    def change(weights: dict[str, Tensor]) -> None:
        weights["model.norm.weight"][:2] = torch.tensor([65_519.0, -65_504.0])

    rewrite(made, 0, change)
    assert read(opened(made), "norm.weight", torch.float16)[:2].tolist() == [65_504.0, -65_504.0]


@pytest.mark.parametrize("kind", ["llama1", "llama3"])
def test_what_fp16_holds_already_is_read_as_it_is(tmp_path: Path, kind: Kind) -> None:
    made = tiny(tmp_path / "model", kind, dtype=torch.float16)
    rewrite(made, 0, lambda weights: weights[NORM][0].fill_(float("inf")))
    assert read(opened(made), NORM, torch.float16)[0] == float("inf")


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_named_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path, form: Any) -> None:
    made = tiny(tmp_path / "model", form=form)
    path = made[0].weight_files[0]
    path.unlink()
    os.mkfifo(path)
    found: list[CellFailure] = []
    waiting = threading.Thread(target=lambda: found.extend(refusals(made, 1)), daemon=True)
    waiting.start()
    waiting.join(600)
    assert [failure.message for failure in found] == [
        f"{path}: is no regular file; expected a file of weights, or a link to one"
    ]


def test_a_file_of_an_old_torch_is_named_for_what_it_is(tmp_path: Path) -> None:
    made = tiny(tmp_path / "model")
    path = made[0].weight_files[0]
    weights = torch.load(path, weights_only=True)
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    (failure,) = refusals(made, 1)
    assert f"{path}: is in the format of torch before 1.6" in failure.message
    assert "save it again with torch 1.6 or newer" in failure.message
