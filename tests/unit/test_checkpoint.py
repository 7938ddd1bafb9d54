"""The loader takes a checkpoint that is exactly right, and names what is wrong with any other."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import engine_tiny
from shardwatt.engine.checkpoint import load_weights
from shardwatt.engine.model import Transformer
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint

WQ = "layers.0.attention.wq.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    folder = tmp_path_factory.mktemp("checkpoint")
    checkpoint = engine_tiny.make(folder / "model")
    with engine_tiny.alone(folder / "group"):
        yield checkpoint


@pytest.fixture
def copy(good: Checkpoint, tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "copy with spaces"
    shutil.copytree(good.folder, folder)
    return Checkpoint(folder, folder / "tokenizer.model", 1)


def read(
    checkpoint: Checkpoint,
    *,
    vocab_size: int = 300,
    precision: str = "fp32",
    rank: int = 0,
    ranks: int = 1,
) -> Transformer:
    model = Transformer(engine_tiny.shape())
    load_weights(
        model,
        checkpoint,
        rank=rank,
        ranks=ranks,
        precision=precision,
        device="cpu",
        vocab_size=vocab_size,
    )
    return model


def rewrite(checkpoint: Checkpoint, change: Callable[[dict[str, Tensor]], object]) -> Path:
    path = checkpoint.shard_files[0]
    weights = torch.load(path, weights_only=True)
    change(weights)
    torch.save(weights, path)
    return path


def refused(checkpoint: Checkpoint, *words: str, reason: Reason = Reason.BAD_CHECKPOINT) -> None:
    with pytest.raises(CellFailure) as caught:
        read(checkpoint)
    assert caught.value.reason is reason
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_weight_arrives_in_the_precision_asked_for(good: Checkpoint, precision: str) -> None:
    loaded = read(good, precision=precision).state_dict()
    saved = torch.load(good.shard_files[0], weights_only=True)
    assert loaded.keys() == saved.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, saved[name].to(tensor.dtype))


def test_weights_do_not_hang_on_to_the_file(copy: Checkpoint) -> None:
    model = read(copy)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with copy.shard_files[0].open("r+b") as stream:
        stream.write(b"\xff" * copy.shard_files[0].stat().st_size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rope_freqs_is_dropped(copy: Checkpoint) -> None:
    rewrite(copy, lambda weights: weights.update({"rope.freqs": torch.zeros(8)}))
    read(copy)


def test_a_missing_tensor_is_named(copy: Checkpoint) -> None:
    path = rewrite(copy, lambda weights: weights.pop(WQ))
    refused(copy, str(path), f"{WQ} missing")


def test_an_extra_tensor_is_named(copy: Checkpoint) -> None:
    path = rewrite(copy, lambda weights: weights.update({"layers.2.extra": torch.zeros(1)}))
    refused(copy, str(path), "layers.2.extra not expected")


def test_missing_and_extra_tensors_are_named_together(copy: Checkpoint) -> None:
    rewrite(copy, lambda weights: weights.update({"model.wq": weights.pop(WQ)}))
    refused(copy, f"{WQ} missing", "model.wq not expected")


def test_a_wrong_shape_is_named_with_the_one_expected(copy: Checkpoint) -> None:
    path = rewrite(copy, lambda weights: weights.update({WQ: torch.zeros(32, 64)}))
    refused(copy, str(path), WQ, "found shape [32, 64], expected [64, 64]")


def test_whole_numbers_are_no_weights(copy: Checkpoint) -> None:
    rewrite(copy, lambda weights: weights.update({WQ: torch.zeros(64, 64, dtype=torch.int8)}))
    refused(copy, WQ, "found torch.int8, expected floating-point")


@pytest.mark.parametrize("kept", [0, 10, 5000, -100])
def test_a_truncated_file_is_named(copy: Checkpoint, kept: int) -> None:
    path = copy.shard_files[0]
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    refused(copy, str(path), "truncated or no checkpoint")


def test_a_missing_shard_file_is_named(copy: Checkpoint) -> None:
    copy.shard_files[0].unlink()
    refused(copy, str(copy.shard_files[0]), "No such file")


class _Harm:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.proof),)


def test_a_pickle_that_runs_code_is_refused_unrun(copy: Checkpoint, tmp_path: Path) -> None:
    proof = tmp_path / "harmed"
    path = copy.shard_files[0]
    torch.save({"tok_embeddings.weight": _Harm(proof)}, path)
    refused(copy, str(path), "something other than tensors")
    path.write_bytes(pickle.dumps(_Harm(proof)))
    refused(copy, str(path))
    assert not proof.exists()


def test_a_file_of_other_things_is_refused(copy: Checkpoint) -> None:
    path = copy.shard_files[0]
    torch.save([torch.zeros(1)], path)
    refused(copy, str(path), "expected tensors by name, found list")
    torch.save({"model": {WQ: torch.zeros(1)}}, path)
    refused(copy, str(path), "expected tensors alone, found model")


def test_another_vocabulary_is_the_tokenizers_fault(good: Checkpoint) -> None:
    with pytest.raises(CellFailure, match=r"has 299 pieces, and tok_embeddings.weight .* has 300") as caught:
        read(good, vocab_size=299)
    assert caught.value.reason is Reason.BAD_TOKENIZER
    assert str(good.tokenizer) in caught.value.message


def test_another_shard_count_is_refused(good: Checkpoint) -> None:
    with pytest.raises(CellFailure, match="is saved in 1 shards, and the run has 2") as caught:
        read(good, rank=1, ranks=2)
    assert caught.value.reason is Reason.BAD_CHECKPOINT


def test_the_shape_expected_is_that_of_the_rank(tmp_path: Path, good: Checkpoint) -> None:
    # This process is a group of one: it expects whole tensors where the file has halves.
    whole, half = good.shard_files[0], tmp_path / "consolidated.00.pth"
    weights = torch.load(whole, weights_only=True)
    torch.save({**weights, WQ: weights[WQ].chunk(2)[0].clone()}, half)
    refused(Checkpoint(tmp_path, good.tokenizer, 1), "found shape [32, 64], expected [64, 64]")
