"""Every rank gets its own slices, bit by bit, whatever the layout and the number of shards saved."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoints_tiny import SHAPES, Kind, meta_slice, tiny, tiny_weights
from shardwatt.architectures import Architecture
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights import RankWeights, open_weights
from shardwatt.engine.weights.slices import EMBEDDING, slice_of, whole_shapes
from shardwatt.models import Checkpoint, Layout

COUNTS = (1, 2, 4, 8, 16)

#: Layout, number of files and their form.
SAVED: list[tuple[Layout, int, str]] = [
    *(("meta", count, form) for count in COUNTS for form in ("pth", "safetensors")),
    *(("huggingface", count, "safetensors") for count in (1, 3)),
]


def opened(checkpoint: Checkpoint, architecture: Architecture, rank: int = 0, ranks: int = 1) -> RankWeights:
    """What a rank reads; the tokenizer has as many pieces as the vocabulary."""
    return open_weights(
        ModelOnRank(
            architecture, checkpoint, "fp32", "cpu", rank, ranks, architecture.vocab_size, frozenset({2})
        )
    )


def read(weights: RankWeights, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """A slice, into memory that held something else."""
    destination = torch.full(weights.shape(name), float("nan"), dtype=dtype)
    weights.copy_to(name, destination)
    return destination


def expected(kind: Kind, name: str, whole: Tensor, rank: int, ranks: int) -> Tensor:
    """A rank's part: as Meta saves it, but every rank holds columns of the embedding."""
    return meta_slice("llama1" if name == EMBEDDING else kind, name, whole, rank, ranks)


@pytest.mark.parametrize(("layout", "files", "form"), SAVED)
@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_rank_reads_its_own_slices(
    tmp_path: Path, kind: Kind, layout: Layout, files: int, form: str
) -> None:
    checkpoint, architecture = tiny(
        tmp_path / "model", kind, layout, files, form="pth" if form == "pth" else "safetensors"
    )
    weights = tiny_weights(kind)
    for ranks in COUNTS:
        for rank in {0, 1 % ranks, ranks // 2, ranks - 1}:
            slices = opened(checkpoint, architecture, rank, ranks)
            assert set(slices.names) == set(weights)
            for name, whole in weights.items():
                assert torch.equal(read(slices, name), expected(kind, name, whole, rank, ranks)), name


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_rounded_once(tmp_path: Path, saved: torch.dtype, wanted: torch.dtype) -> None:
    checkpoint, architecture = tiny(tmp_path / "model", "llama3", "huggingface", dtype=saved)
    weights = tiny_weights("llama3", saved)
    slices = opened(checkpoint, architecture, 1, 2)
    for name, whole in weights.items():
        assert slices.dtype(name) == saved
        exact = expected("llama3", name, whole, 1, 2)
        assert torch.equal(read(slices, name, wanted), exact.to(wanted)), name


def test_a_slice_may_go_into_a_part_of_a_larger_tensor(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model", "llama2-70b", "huggingface")
    slices = opened(checkpoint, architecture, 3, 8)
    names = [f"layers.1.attention.{part}.weight" for part in ("wq", "wk", "wv")]
    sizes = [slices.shape(name)[0] for name in names]
    fused = torch.full((sum(sizes) + 1, 2 * architecture.dim), float("nan"))
    for name, part in zip(names, torch.split(fused[:-1, ::2], sizes), strict=True):
        slices.copy_to(name, part)
    together = torch.cat([read(slices, name) for name in names])
    assert torch.equal(fused[:-1, ::2], together)
    assert fused[-1].isnan().all()
    assert fused[:, 1::2].isnan().all()


def test_what_was_read_does_not_hang_on_to_the_file(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model")
    name = "layers.0.attention.wq.weight"
    wq = read(opened(checkpoint, architecture), name)
    path = checkpoint.weight_files[0]
    with path.open("r+b") as stream:
        stream.write(b"\xff" * path.stat().st_size)
    assert torch.equal(wq, tiny_weights()[name])


def test_another_ranks_slices_come_from_the_same_open_files(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model", "llama2-70b", shards=8)
    first = opened(checkpoint, architecture, 0, 8)
    for path in checkpoint.weight_files:
        path.unlink()
    for rank in range(8):
        other = first.of_rank(rank, 8)
        for name, whole in tiny_weights("llama2-70b").items():
            assert torch.equal(read(other, name), expected("llama2-70b", name, whole, rank, 8)), name


def test_as_many_shards_as_ranks_are_read_one_each(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model", "llama2-70b", shards=8)
    slices = opened(checkpoint, architecture, 5, 8)
    used = {part.tensor.file.path.name for parts in slices._parts.values() for part in parts}
    overlapping = set()
    for name, parts in slices._parts.items():
        own = slices._slices[name]
        for part in parts:
            rows = range(max(own.rows.start, part.place.rows.start), min(own.rows.stop, part.place.rows.stop))
            columns = part.place.columns
            if rows and max(own.columns.start, columns.start) < min(own.columns.stop, columns.stop):
                overlapping.add(part.tensor.file.path.name)
    assert len(used) == 8
    assert overlapping == {"consolidated.05.pth"}


def test_a_padded_embedding_of_transformers_is_read_whole(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model", "llama1", "huggingface")
    fewer = ModelOnRank(architecture, checkpoint, "fp32", "cpu", 0, 1, 301, frozenset({2}))
    assert open_weights(fewer).shape(EMBEDDING) == (320, 128)


@st.composite
def shapes(draw: st.DrawFn) -> Architecture:
    """Any shape: heads of any even size, grouped or not."""
    kv_heads = draw(st.sampled_from([1, 2, 3, 4, 6]))
    heads = kv_heads * draw(st.sampled_from([1, 2, 4, 5]))
    head_size = draw(st.sampled_from([2, 4, 6]))
    dim = draw(st.sampled_from([heads * head_size, 24, 40]))
    return Architecture(
        *(dim, 1, heads, kv_heads, 120, 240), head_size=head_size, tied_embeddings=draw(st.booleans())
    )


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_slices_make_up_the_whole_and_repeat_only_what_is_replicated(architecture: Architecture) -> None:
    for ranks in architecture.allowed_shards():
        for name, shape in whole_shapes(architecture).items():
            count = torch.zeros(shape if len(shape) == 2 else (1, *shape))
            for rank in range(ranks):
                part = slice_of(architecture, name, rank, ranks)
                count[part.rows.start : part.rows.stop, part.columns.start : part.columns.stop] += 1
            times = 1
            if len(shape) == 1:
                times = ranks
            elif name.endswith((".wk.weight", ".wv.weight")):
                times = max(1, ranks // architecture.n_kv_heads)
            assert (count == times).all(), (name, ranks)


def test_shapes_of_all_tensors_add_up_to_the_parameters() -> None:
    for architecture in SHAPES.values():
        for ranks in architecture.allowed_shards():
            parts = [slice_of(architecture, name, 0, ranks) for name in whole_shapes(architecture)]
            numbers = sum(len(part.rows) * len(part.columns) for part in parts)
            if architecture.tied_embeddings and ranks == 1:
                numbers -= architecture.vocab_size * architecture.dim
            assert numbers == architecture.parameters_per_shard(ranks)
