"""A checkpoint is opened only if it is exactly right; what is wrong with any other is named."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoints_tiny import tiny
from shardwatt.architectures import Architecture
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights import RankWeights, open_weights
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint

WQ = "layers.0.attention.wq.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
INDEX = "model.safetensors.index.json"

Tiny = tuple[Checkpoint, Architecture]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def pth(tmp_path: Path) -> Tiny:
    return tiny(tmp_path / "a folder", shards=2)


@pytest.fixture
def meta_safetensors(tmp_path: Path) -> Tiny:
    return tiny(tmp_path / "a folder", shards=2, form="safetensors")


@pytest.fixture
def single(tmp_path: Path) -> Tiny:
    return tiny(tmp_path / "a folder", layout="huggingface")


@pytest.fixture
def several(tmp_path: Path) -> Tiny:
    return tiny(tmp_path / "a folder", layout="huggingface", shards=3)


def open_tiny(made: Tiny, vocab_size: int = 320, ranks: int = 1) -> RankWeights:
    checkpoint, architecture = made
    return open_weights(
        ModelOnRank(architecture, checkpoint, "fp32", "cpu", 0, ranks, vocab_size, frozenset({2}))
    )


def refused(made: Tiny, *words: str, vocab_size: int = 320, reason: Reason = Reason.BAD_CHECKPOINT) -> None:
    with pytest.raises(CellFailure) as caught:
        open_tiny(made, vocab_size)
    assert caught.value.reason is reason
    for word in words:
        assert word in caught.value.message


def rewrite(made: Tiny, change: Change, file: int = 1) -> Path:
    """Change the tensors of a file and save them again."""
    path = made[0].weight_files[file]
    if path.suffix == ".pth":
        weights = torch.load(path, weights_only=True)
        change(weights)
        torch.save(weights, path)
    else:
        weights = load_file(path)
        change(weights)
        save_file(weights, path)
    return path


def change_header(made: Tiny, change: Change) -> Path:
    """Change the JSON header of a safetensors file."""
    path = made[0].weight_files[0]
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + length])
    change(entries)
    header = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    return path


def change_index(made: Tiny, change: Change) -> Path:
    path = made[0].folder / INDEX
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(params=["pth", "meta_safetensors"])
def meta(request: pytest.FixtureRequest) -> Tiny:
    made: Tiny = request.getfixturevalue(request.param)
    return made


def test_a_missing_tensor_is_named(meta: Tiny) -> None:
    path = rewrite(meta, lambda weights: weights.pop(WQ))
    refused(meta, str(path), f"{WQ} missing", "the 21 tensors that params.json implies")


def test_an_extra_tensor_is_named(meta: Tiny) -> None:
    path = rewrite(meta, lambda weights: weights.update({"layers.2.extra": torch.zeros(1)}))
    refused(meta, str(path), "layers.2.extra not expected")


def test_missing_and_extra_tensors_are_named_together(meta: Tiny) -> None:
    rewrite(meta, lambda weights: weights.update({"model.wq": weights.pop(WQ)}))
    refused(meta, f"{WQ} missing", "model.wq not expected")


def test_a_wrong_shape_is_named_with_the_one_expected(meta: Tiny) -> None:
    path = rewrite(meta, lambda weights: weights.update({WQ: torch.zeros(32, 64)}))
    refused(meta, str(path), WQ, "found shape [32, 64], expected [64, 128] of this shard")


def test_a_norm_that_is_a_matrix_is_refused(meta: Tiny) -> None:
    rewrite(meta, lambda weights: weights.update({"norm.weight": torch.zeros(1, 128)}))
    refused(meta, "norm.weight", "found shape [1, 128], expected [128]")


def test_whole_numbers_are_no_weights(pth: Tiny) -> None:
    rewrite(pth, lambda weights: weights.update({WQ: torch.zeros(64, 128, dtype=torch.int8)}))
    refused(pth, WQ, "found torch.int8, expected floating-point")


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_quantised_numbers_are_no_weights(single: Tiny, dtype: torch.dtype, name: str) -> None:
    rewrite(single, lambda weights: weights.update({Q_PROJ: torch.zeros(128, 128).to(dtype)}), file=0)
    refused(single, Q_PROJ, f"found numbers of type {name}, expected floating-point ones")


def test_shards_of_different_precision_are_refused(meta: Tiny) -> None:
    rewrite(meta, lambda weights: weights.update({WQ: weights[WQ].half()}))
    refused(meta, WQ, "found torch.float16, expected torch.float32 as in consolidated.00")


@pytest.mark.parametrize("kept", [0, 7, 10, 5000, -100, -1])
@pytest.mark.parametrize("form", ["pth", "meta_safetensors", "single"])
def test_a_truncated_file_is_named(request: pytest.FixtureRequest, form: str, kept: int) -> None:
    made: Tiny = request.getfixturevalue(form)
    path = made[0].weight_files[0]
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    refused(made, str(path), "truncated or ", "get a clean copy")


def test_a_file_that_grew_is_refused(single: Tiny) -> None:
    path = single[0].weight_files[0]
    path.write_bytes(path.read_bytes() + b"\0")
    refused(single, str(path), "truncated or damaged")


def test_a_file_that_becomes_shorter_while_it_is_read_is_named(single: Tiny) -> None:
    weights = open_tiny(single)
    os.truncate(single[0].weight_files[0], 20_000)
    destination = torch.empty(weights.shape("norm.weight"))
    with pytest.raises(CellFailure, match="before its tensors do") as caught:
        weights.copy_to("norm.weight", destination)
    assert caught.value.reason is Reason.BAD_CHECKPOINT


def test_a_folder_in_a_files_place_is_named(single: Tiny) -> None:
    path = single[0].weight_files[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(CellFailure, match="is no regular file; expected a file of weights"):
        open_tiny(single)


@pytest.mark.parametrize("form", ["pth", "meta_safetensors", "several"])
def test_a_missing_file_is_named(request: pytest.FixtureRequest, form: str) -> None:
    made: Tiny = request.getfixturevalue(form)
    made[0].weight_files[1].unlink()
    refused(made, str(made[0].weight_files[1]), "No such file")


def test_files_of_a_number_that_does_not_split_the_model_are_refused(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model", shards=4)
    fewer = Checkpoint(checkpoint.folder, checkpoint.tokenizer, "meta", checkpoint.weights[:3])
    refused((fewer, architecture), "is saved in 3 shards", "splits over 1, 2, 4, 8, 16")


def test_half_of_the_shards_is_not_taken_for_all(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model", shards=4)
    half = Checkpoint(checkpoint.folder, checkpoint.tokenizer, "meta", checkpoint.weights[:2])
    refused((half, architecture), "found shape", "of this shard")


class _Harm:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.proof),)


def test_a_pickle_that_runs_code_is_refused_unrun(pth: Tiny, tmp_path: Path) -> None:
    proof = tmp_path / "harmed"
    path = pth[0].weight_files[0]
    torch.save({WQ: _Harm(proof)}, path)
    refused(pth, str(path), "something other than tensors")
    path.write_bytes(pickle.dumps(_Harm(proof)))
    refused(pth, str(path))
    assert not proof.exists()


def test_a_file_of_other_things_is_refused(pth: Tiny) -> None:
    path = pth[0].weight_files[0]
    torch.save([torch.zeros(1)], path)
    refused(pth, str(path), "expected tensors by name, found list")
    torch.save({"model": {WQ: torch.zeros(1)}}, path)
    refused(pth, str(path), "expected tensors alone, found model")
    torch.save({7: torch.zeros(1)}, path)
    refused(pth, str(path), "expected tensors alone, found 7")


def test_a_transposed_tensor_is_refused(pth: Tiny) -> None:
    rewrite(pth, lambda weights: weights.update({WQ: torch.zeros(128, 64).T}))
    refused(pth, WQ, "is not saved row after row")


def test_tensors_that_share_their_memory_are_read(tmp_path: Path) -> None:
    made = tiny(tmp_path / "model")

    def share(weights: dict[str, Tensor]) -> None:
        for name in ("wk", "wv"):
            weights[f"layers.0.attention.{name}.weight"] = both[name == "wk"]

    both = torch.arange(2 * 128 * 128.0).view(2, 128, 128).unbind()
    rewrite(made, share, file=0)
    weights, found = open_tiny(made), torch.empty(128, 128)
    for name in ("wk", "wv"):
        weights.copy_to(f"layers.0.attention.{name}.weight", found)
        assert torch.equal(found, both[name == "wk"])


def test_numbers_that_no_tensor_uses_are_refused(pth: Tiny) -> None:
    path = pth[0].weight_files[0]
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/data/999", b"x" * 64)
    refused(pth, str(path), "save the tensors alone")


def test_compressed_numbers_are_refused(pth: Tiny) -> None:
    path = pth[0].weight_files[0]
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(pth, str(path))


def test_numbers_of_a_big_endian_machine_are_refused(pth: Tiny) -> None:
    path = pth[0].weight_files[0]
    path.write_bytes(path.read_bytes().replace(b"little", b"big..."))
    refused(pth, str(path))


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries[Q_PROJ].pop("shape"),
        lambda entries: entries[Q_PROJ].update(shape=[-128, -128]),
        lambda entries: entries[Q_PROJ].update(shape="128"),
        lambda entries: entries[Q_PROJ].update(data_offsets=[0]),
        lambda entries: entries[Q_PROJ].update(more=1),
        lambda entries: entries.update({Q_PROJ: None}),
    ],
)
def test_a_header_of_another_form_is_refused(single: Tiny, change: Change) -> None:
    path = change_header(single, change)
    refused(single, str(path), "its header is not that of a safetensors file", Q_PROJ)


def test_a_header_that_is_no_json_is_refused(single: Tiny) -> None:
    path = single[0].weight_files[0]
    path.write_bytes(struct.pack("<Q", 8) + b"not json" + b"\0" * 64)
    refused(single, str(path), "its header is not that of a safetensors file")
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refused(single, str(path), "its header is to have 9223372036854775808 bytes")


def test_tensors_that_overlap_in_the_file_are_refused(single: Tiny) -> None:
    def overlap(entries: dict[str, Any]) -> None:
        begin, end = entries[Q_PROJ]["data_offsets"]
        entries[Q_PROJ]["data_offsets"] = [begin - 4, end - 4]

    path = change_header(single, overlap)
    refused(single, str(path), "next to the tensor before")


def test_a_shape_that_is_not_that_of_the_bytes_is_refused(single: Tiny) -> None:
    change_header(single, lambda entries: entries[Q_PROJ].update(shape=[128, 64]))
    refused(single, Q_PROJ, "found bytes", "next to the tensor before")


def test_names_of_transformers_are_accounted_for(several: Tiny) -> None:
    rewrite(several, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(1)}))
    (several[0].folder / INDEX).unlink()
    refused(several, str(several[0].folder), "q_proj.bias not expected", "the 21 tensors that config.json")


def test_an_output_layer_may_be_missing_only_where_it_is_tied(single: Tiny) -> None:
    rewrite(single, lambda weights: weights.pop("lm_head.weight"), file=0)
    refused(single, "lm_head.weight missing")


def test_a_wrong_shape_of_transformers_is_named(single: Tiny) -> None:
    path = rewrite(single, lambda weights: weights.update({Q_PROJ: torch.zeros(64, 128)}), file=0)
    refused(single, str(path), Q_PROJ, "found shape [64, 128], expected [128, 128]")


def test_frequencies_that_old_versions_saved_are_dropped(several: Tiny) -> None:
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    path = rewrite(several, lambda weights: weights.update({name: torch.zeros(4)}))
    change_index(several, lambda places: places.update({name: path.name}))
    open_tiny(several)


def test_an_index_that_is_not_beside_several_files_is_not_needed(several: Tiny) -> None:
    (several[0].folder / INDEX).unlink()
    open_tiny(several)


def test_a_tensor_in_two_files_is_refused(several: Tiny) -> None:
    name = next(iter(load_file(several[0].weight_files[0])))
    path = rewrite(several, lambda weights: weights.update({name: torch.zeros(1)}))
    refused(several, str(path), f"{name} found, and also in model-00001-of-00003.safetensors")


def test_an_index_that_says_otherwise_is_refused(several: Tiny) -> None:
    change_index(several, lambda places: places.update({Q_PROJ: "model-00001-of-00003.safetensors"}))
    refused(several, Q_PROJ, f"{INDEX} says otherwise")


def test_an_index_that_names_a_missing_file_is_refused(several: Tiny) -> None:
    path = change_index(several, lambda places: places.update({"more": "model-00004-of-00004.safetensors"}))
    refused(several, str(path), "does not agree", "'model-00004-of-00004.safetensors'", "changed since")


@pytest.mark.parametrize(
    "file", ["../other.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.pth", ""]
)
def test_an_index_that_leads_out_of_the_folder_is_refused(several: Tiny, file: str) -> None:
    path = change_index(several, lambda places: places.update({Q_PROJ: file}))
    refused(several, str(path), repr(file), "does not agree")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {"a": 1}}', "[" * 100_000])
def test_an_index_of_another_form_is_refused(several: Tiny, content: str) -> None:
    path = several[0].folder / INDEX
    path.write_text(content)
    refused(several, str(path))


@pytest.mark.parametrize("kind", ["llama1", "llama3"])
@pytest.mark.parametrize("shards", [1, 4])
def test_another_vocabulary_is_the_tokenizers_fault(tmp_path: Path, kind: Any, shards: int) -> None:
    made = tiny(tmp_path / "model", kind, shards=shards)
    rows = made[1].vocab_size
    refused(
        made,
        str(made[0].tokenizer),
        f"has {rows + 1} pieces, and tok_embeddings.weight in",
        f"has {rows} rows; expected no fewer rows",
        vocab_size=rows + 1,
        reason=Reason.BAD_TOKENIZER,
    )
    open_tiny(made, rows - 1)  # whether it may be padded was decided with the tokenizer


def test_an_embedding_of_transformers_has_no_fewer_rows_than_pieces(single: Tiny) -> None:
    refused(
        single,
        "has 321 pieces, and tok_embeddings.weight in",
        "has 320 rows; expected no fewer rows",
        vocab_size=321,
        reason=Reason.BAD_TOKENIZER,
    )


def test_a_shape_file_with_another_vocabulary_is_the_checkpoints_fault(single: Tiny) -> None:
    checkpoint, architecture = single
    other = Architecture(128, 2, 16, 16, 352, 336)
    assert other.vocab_size != architecture.vocab_size
    refused((checkpoint, other), "model.embed_tokens.weight", "expected [336, 128]")
