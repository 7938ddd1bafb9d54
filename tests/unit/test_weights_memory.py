"""Loading takes the memory of a shard, and copying that of a tensor, however large the files are."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shardwatt.architectures import Architecture
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.fast.weights import passing_tensor
from shardwatt.engine.reshard import reshard
from shardwatt.engine.weights.shapefile import params_of
from shardwatt.engine.weights.slices import whole_shapes
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import open_checkpoint
from sparse_checkpoint import sparse

#: 155 MB in bfloat16; heads are grouped, so that 8 ranks share 4 key and value heads.
SHAPE = Architecture(2048, 1, 32, 4, 5632, 8192)

#: 375 MB in bfloat16, in tensors of 8 to 34 MB: of those up to 32 MiB glibc keeps some that are freed.
LAYERED = Architecture(2048, 3, 32, 32, 5632, 8192)

TESTS = Path(__file__).parents[1]


def program(*words: str, **environment: str) -> dict[str, float]:
    """What a program that measures itself prints."""
    run = subprocess.run(
        [sys.executable, *words],
        input="\n",
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as one pickled file, as 8 shards, and in the layout of transformers."""
    root = tmp_path_factory.mktemp("saved")
    one = root / "pth"
    one.mkdir()
    (one / "params.json").write_text(json.dumps(params_of(SHAPE)))
    (one / "tokenizer.model").touch()
    weights = {
        name: torch.full(shape, 0.5, dtype=torch.bfloat16) for name, shape in whole_shapes(SHAPE).items()
    }
    torch.save(weights, one / "consolidated.00.pth")
    source = open_checkpoint(one)
    reshard(source, SHAPE, root / "meta-8", layout="meta", shards=8)
    reshard(source, SHAPE, root / "huggingface", layout="huggingface")
    return root


@pytest.mark.parametrize(
    ("folder", "rank", "ranks", "precision"),
    [
        ("pth", 1, 2, "bf16"),
        ("pth", 1, 4, "fp32"),
        ("meta-8", 1, 2, "fp16"),
        ("meta-8", 0, 4, "fp32"),
        ("huggingface", 1, 2, "bf16"),
    ],
)
def test_loading_takes_at_most_a_shard_and_a_tenth(
    saved: Path, folder: str, rank: int, ranks: int, precision: str
) -> None:
    words = (str(TESTS / "weights_rank.py"), str(saved / folder), str(rank), str(ranks), precision)
    found = program(*words)
    assert found["shard_bytes"] > 50e6
    assert found["peak_bytes"] <= 1.1 * found["shard_bytes"]
    # It counts: what was loaded is resident.
    assert found["peak_bytes"] >= found["shard_bytes"]


needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the extra hf is not installed"
)


@pytest.mark.parametrize(
    ("engine", "ranks", "precision", "rows"),
    [
        ("reference", 1, "bf16", 4),
        ("fast", 1, "bf16", 4),
        pytest.param("fast", 2, "fp32", 1, id="fast-laid-out-for-one-row"),
        pytest.param("hf", 2, "fp32", 4, id="hf-embedding-split-by-vocabulary", marks=needs_transformers),
    ],
)
def test_an_engine_loads_in_at_most_a_shard_and_a_tenth(
    tmp_path: Path, engine: str, ranks: int, precision: str, rows: int
) -> None:
    folder = tmp_path / "holes"
    sparse(folder, LAYERED, 2)
    words = (engine, str(folder), str(ranks - 1), str(ranks), precision, str(rows))
    found = program(str(TESTS / "engine_load_rank.py"), *words)
    assert found["shard_bytes"] > 350e6
    assert found["shard_bytes"] <= found["peak_bytes"] <= 1.1 * found["shard_bytes"]


def test_a_host_without_room_for_weights_that_are_laid_out_is_named() -> None:
    with pytest.raises(CellFailure, match="weights that are to be laid out") as full, torch_failures():
        passing_tensor((2**48,), torch.bfloat16)  # more than a process can address
    assert full.value.reason == Reason.HOST_OOM


_COPYING = """
import json, sys
from pathlib import Path
from shardwatt.engine.reshard import reshard
from shardwatt.models import open_checkpoint, read_architecture

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024

source, target, layout = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
checkpoint = open_checkpoint(source)
architecture = read_architecture(checkpoint)
reshard(checkpoint, architecture, target / "first", layout=layout)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
reshard(checkpoint, architecture, target / "second", layout=layout)
print(json.dumps({"peak_bytes": resident("VmHWM") - before}))
"""


@pytest.mark.parametrize(("folder", "layout"), [("pth", "meta"), ("meta-8", "huggingface")])
def test_copying_holds_one_tensor_at_a_time(saved: Path, tmp_path: Path, folder: str, layout: str) -> None:
    # By itself glibc keeps freed tensors of up to 32 MiB for later, or not, by chance: none of those is held.
    words = ("-c", _COPYING, str(saved / folder), str(tmp_path), layout)
    found = program(*words, MALLOC_MMAP_THRESHOLD_=str(2**20))
    # The largest is an embedding; beside it there are buffers.
    assert found["peak_bytes"] < 2 * SHAPE.vocab_size * SHAPE.dim + 20e6
