"""Copies of checkpoints hold the same bits, are there whole or not at all, were read back from the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from checkpoints_tiny import Kind, half_split, hugging_face_name, meta_slice, tiny, tiny_weights
from shardwatt.architectures import Architecture, RopeScaling
from shardwatt.checkpoints import SUMS_FILE
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.reshard import reshard
from shardwatt.engine.weights import open_weights, planned
from shardwatt.engine.weights.planned import ReshardError
from shardwatt.engine.weights.safetensorsfile import header
from shardwatt.engine.weights.slices import whole_shapes
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint, Layout, open_checkpoint, read_architecture

COUNTS = (1, 2, 4, 8, 16)
Step = tuple[Layout, int]

steps = st.lists(
    st.one_of(st.tuples(st.just("meta"), st.sampled_from(COUNTS)), st.just(("huggingface", 1))),
    min_size=1,
    max_size=2,
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def whole_of(checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Tensor]:
    """All tensors unsplit, as they are saved."""
    weights = open_weights(
        ModelOnRank(architecture, checkpoint, "fp32", "cpu", 0, 1, architecture.vocab_size, frozenset({2}))
    )
    tensors = {name: torch.empty(weights.shape(name), dtype=weights.dtype(name)) for name in weights.names}
    for name, tensor in tensors.items():
        weights.copy_to(name, tensor)
    return tensors


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def same_bits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == expected.keys() and all(
        tensor.dtype == expected[name].dtype and bits(tensor) == bits(expected[name])
        for name, tensor in tensors.items()
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(get_args(Kind)),
    st.one_of(
        st.tuples(st.just("meta"), st.sampled_from(COUNTS)),
        st.tuples(st.just("huggingface"), st.sampled_from([1, 3])),
    ),
    steps,
    dtypes,
)
def test_any_layout_and_count_to_any_and_back_is_the_same_bits(
    kind: Kind, first: Step, on: list[Step], dtype: torch.dtype
) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        checkpoint, architecture = tiny(root / "first", kind, first[0], first[1], dtype=dtype)
        weights = tiny_weights(kind, dtype)
        direct = reshard(checkpoint, architecture, root / "direct", layout=on[-1][0], shards=on[-1][1])
        for number, (layout, shards) in enumerate(on):
            copy = reshard(checkpoint, architecture, root / str(number), layout=layout, shards=shards)
            checkpoint = open_checkpoint(root / str(number))
            assert checkpoint == copy.checkpoint
            assert read_architecture(checkpoint, architecture.vocab_size) == architecture
            assert same_bits(whole_of(checkpoint, architecture), weights)
        # However it came here, what is on the disk is the same.
        names = direct.checkpoint.weights
        assert checkpoint.weights == names
        assert all(
            (root / "direct" / name).read_bytes() == checkpoint.folder.joinpath(name).read_bytes()
            for name in names
        )


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("shards", [2, 8, 16])
def test_a_shard_holds_what_meta_would_save(tmp_path: Path, kind: Kind, shards: int) -> None:
    checkpoint, architecture = tiny(tmp_path / "source", kind, "huggingface", dtype=torch.bfloat16)
    reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=shards)
    weights = tiny_weights(kind, torch.bfloat16)
    if architecture.tied_embeddings:
        del weights["output.weight"]
    for shard in range(shards):
        found = load_file(tmp_path / "copy" / f"consolidated.{shard:02d}.safetensors")
        expected = {
            name: meta_slice("llama1" if name.startswith("tok") else kind, name, whole, shard, shards)
            for name, whole in weights.items()
        }
        assert same_bits(found, expected)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_transformers_reads_the_same_model(tmp_path: Path, kind: Kind) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoint, architecture = tiny(tmp_path / "source", kind, shards=4)
    reshard(checkpoint, architecture, tmp_path / "copy", layout="huggingface")
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    config = model.config
    assert (config.rms_norm_eps, config.eos_token_id) == (architecture.norm_eps, None)
    assert config.rope_parameters["rope_theta"] == architecture.rope_theta
    assert config.rope_parameters["rope_type"] == ("llama3" if kind == "llama3" else "default")
    found = model.state_dict()
    for name, whole in tiny_weights(kind).items():
        heads = {"wq": 16, "wk": architecture.n_kv_heads}.get(name.split(".")[-2])
        expected = half_split(whole, heads) if heads else whole
        assert torch.equal(found[hugging_face_name(name)], expected), name


def test_a_large_model_of_transformers_comes_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "FILE_BYTES", 200_000)
    checkpoint, architecture = tiny(tmp_path / "source", dtype=torch.bfloat16)
    copy = reshard(checkpoint, architecture, tmp_path / "copy", layout="huggingface").checkpoint
    assert len(copy.weights) > 3
    assert open_checkpoint(tmp_path / "copy") == copy
    assert same_bits(whole_of(copy, architecture), tiny_weights("llama1", torch.bfloat16))
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    sizes = dict.fromkeys(copy.weights, 0)
    for name, file in index["weight_map"].items():
        with safe_open(copy.folder / file, "pt") as opened:
            sizes[file] += opened.get_tensor(name).nbytes
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert max(sizes.values()) <= 200_000


def test_precision_may_differ_from_tensor_to_tensor(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "source")
    path = checkpoint.weight_files[0]
    weights = torch.load(path, weights_only=True)
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in weights.items()}
    torch.save(mixed, path)
    copy = reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=4).checkpoint
    del mixed["rope.freqs"]
    assert same_bits(whole_of(copy, architecture), mixed)


def test_sums_of_all_files_are_listed(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "source")
    reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=2)
    words = ["sha256sum", "--check", "--strict", SUMS_FILE]
    run = subprocess.run(words, cwd=tmp_path / "copy", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    checked = {line.partition(":")[0] for line in run.stdout.splitlines()}
    assert checked == set(contents(tmp_path / "copy")) - {SUMS_FILE}


def test_what_belongs_to_the_model_comes_along(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "source", "llama3", "huggingface")
    for name in ("generation_config.json", "tokenizer_config.json", "notes.txt"):
        (tmp_path / "source" / name).write_text(f'{{"name": "{name}", "eos_token_id": 7}}')
    reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=2)
    found = contents(tmp_path / "copy")
    for name in ("tokenizer.json", "generation_config.json", "tokenizer_config.json"):
        assert found[name] == (tmp_path / "source" / name).read_bytes()
    assert "notes.txt" not in found


def test_a_tokenizer_one_folder_up_is_copied_into_the_folder(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "model" / "shards-1")
    checkpoint.tokenizer.rename(tmp_path / "model" / "tokenizer.model")
    checkpoint = open_checkpoint(tmp_path / "model" / "shards-1")
    copy = reshard(checkpoint, architecture, tmp_path / "model" / "shards-2", layout="meta", shards=2)
    assert copy.checkpoint.tokenizer == tmp_path / "model" / "shards-2" / "tokenizer.model"
    assert copy.checkpoint.tokenizer.read_bytes() == checkpoint.tokenizer.read_bytes()


def test_progress_ends_with_all_that_is_written_and_read_back(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    checkpoint, architecture = tiny(tmp_path / "source")
    copy = reshard(
        *(checkpoint, architecture, tmp_path / "copy"),
        layout="meta",
        shards=2,
        progress=lambda done, total: told.append((done, total)),
    )
    size = sum(path.stat().st_size for path in copy.checkpoint.weight_files)
    assert copy.size_bytes == size
    assert told[-1] == (2 * size, 2 * size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len(told) > 80


@pytest.mark.parametrize("there", ["folder", "empty folder", "file", "dangling link"])
def test_what_is_there_is_never_overwritten(tmp_path: Path, there: str) -> None:
    checkpoint, architecture = tiny(tmp_path / "source")
    target = tmp_path / "copy"
    match there:
        case "folder":
            target.mkdir()
            (target / "mine").touch()
        case "empty folder":
            target.mkdir()
        case "file":
            target.touch()
        case "dangling link":
            target.symlink_to("nowhere")
    with pytest.raises(ReshardError, match="copy is there already"):
        reshard(checkpoint, architecture, target, layout="meta", shards=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


@pytest.mark.parametrize(
    ("layout", "shards", "words"),
    [
        ("meta", 3, "shards: 3: the model does not split so; use one of 1, 2, 4, 8, 16"),
        ("meta", 0, "does not split so"),
        ("huggingface", 2, "leave shards out"),
    ],
)
def test_a_count_that_does_not_split_is_refused(
    tmp_path: Path, layout: Layout, shards: int, words: str
) -> None:
    checkpoint, architecture = tiny(tmp_path / "source")
    with pytest.raises(ReshardError, match=words):
        reshard(checkpoint, architecture, tmp_path / "copy", layout=layout, shards=shards)


def nothing_is_left(root: Path) -> bool:
    return [path.name for path in root.iterdir()] == ["source"]


def test_a_shape_without_words_in_the_other_layout_is_refused(tmp_path: Path) -> None:
    checkpoint, _ = tiny(tmp_path / "source", layout="huggingface")
    config = json.loads(checkpoint.params.read_text())
    config["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    checkpoint.params.write_text(json.dumps(config))
    scaled = read_architecture(checkpoint)
    assert scaled.rope_scaling == RopeScaling("linear", 2.0)
    with pytest.raises(ReshardError, match=r"params\.json has no words for this model's rope_scaling"):
        reshard(checkpoint, scaled, tmp_path / "copy", layout="meta", shards=2)
    assert nothing_is_left(tmp_path)
    copy = reshard(checkpoint, scaled, tmp_path / "copy", layout="huggingface").checkpoint
    assert read_architecture(copy) == scaled


def test_a_source_that_is_not_right_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "source", shards=4)
    os.truncate(checkpoint.weight_files[3], 5000)
    with pytest.raises(CellFailure, match=r"consolidated\.03\.pth: is truncated") as caught:
        reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=2)
    assert caught.value.reason is Reason.BAD_CHECKPOINT
    assert nothing_is_left(tmp_path)


def test_too_little_space_is_known_before(tmp_path: Path) -> None:
    checkpoint, _ = tiny(tmp_path / "source", form="safetensors")
    # A model without layers to speak of, whose vocabulary is twice as large as the disk: a file of holes.
    free = shutil.disk_usage(tmp_path).free
    huge = Architecture(128, 1, 16, 16, 352, free // 128 // 2 // 16 * 16)
    tensors = {name: (torch.bfloat16, shape) for name, shape in whole_shapes(huge).items()}
    checkpoint.weight_files[0].write_bytes(header(tensors))
    size = len(header(tensors)) + 2 * huge.parameters
    os.truncate(checkpoint.weight_files[0], size)
    with pytest.raises(ReshardError, match=rf"GB of space, and the copy takes {size / 1e9:.1f} GB"):
        reshard(checkpoint, huge, tmp_path / "copy", layout="meta", shards=1)
    assert nothing_is_left(tmp_path)


class _Stop(BaseException):
    """Such as a Ctrl-C."""


def test_a_copy_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "source")

    def stop(done: int, total: int) -> None:
        if done > total // 3:
            assert not (tmp_path / "copy").exists()
            raise _Stop

    with pytest.raises(_Stop):
        reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=4, progress=stop)
    assert nothing_is_left(tmp_path)


def _flip(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1000, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 1]))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("harm", [_flip, _cut])
def test_a_disk_that_gives_back_other_bytes_is_found_out(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    checkpoint, architecture = tiny(tmp_path / "source")
    harmed: list[Path] = []

    def meddle(done: int, total: int) -> None:
        # All is written, and nothing was read back.
        if done == total // 2:
            harmed.extend(tmp_path.glob(".copy-*/made/consolidated.01.safetensors"))
            harm(harmed[0])

    with pytest.raises(ReshardError, match=r"consolidated\.01\.safetensors: .*gave back other bytes"):
        reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=2, progress=meddle)
    assert harmed
    assert nothing_is_left(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    checkpoint, architecture = tiny(tmp_path / "source")
    (tmp_path / "file").touch()
    with pytest.raises(ReshardError, match=r"/file is no folder; expected one in which copy can be made"):
        reshard(checkpoint, architecture, tmp_path / "file" / "copy", layout="meta", shards=2)
    with pytest.raises(ReshardError, match=r"/file is no folder; expected one in which model can be made"):
        reshard(checkpoint, architecture, tmp_path / "file" / "far" / "model", layout="meta", shards=2)
    with pytest.raises(ReshardError, match=r"/proc/"):
        reshard(checkpoint, architecture, Path("/proc/copy/model"), layout="meta", shards=2)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_none_are_copied_only_if_that_is_asked_for(tmp_path: Path, number: float) -> None:
    checkpoint, architecture = tiny(tmp_path / "source", dtype=torch.bfloat16)
    path, name = checkpoint.weight_files[0], "layers.1.feed_forward.w2.weight"
    weights = torch.load(path, weights_only=True)
    weights[name][-1, -3:] = number
    torch.save(weights, path)
    words = rf"{name}: 3 of 45056 numbers are infinite or none; .*--allow-non-finite"
    with pytest.raises(ReshardError, match=words):
        reshard(checkpoint, architecture, tmp_path / "copy", layout="meta", shards=2)
    assert nothing_is_left(tmp_path)
    copy = reshard(
        *(checkpoint, architecture, tmp_path / "copy"), layout="meta", shards=2, allow_non_finite=True
    )
    assert copy.non_finite == {name: 3}
    del weights["rope.freqs"]
    assert same_bits(whole_of(copy.checkpoint, architecture), weights)
