"""Guards `shardwatt model`: what it says of a checkpoint, what it finds wrong, and the copies it makes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shardwatt.architectures import CATALOGUE
from shardwatt.checks.model import GPU_SIZES_GIB, memory_plan
from shardwatt.cli import main
from shardwatt.models import open_checkpoint
from shardwatt.prepare import make_model
from shardwatt.site import parse_site
from small_project import make_checkpoint, make_root, site_content, write_yaml

ROOT = Path(__file__).parents[2]
RECIPE = {
    "about": "a test",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "multiple_of": 16,
    "context": 512,
    "vocab_size": 512,
    "mean_response_tokens": 8,
    "shards": [1, 2],
}

Run = subprocess.CompletedProcess[str]
Shardwatt = Callable[..., Run]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a small model, saved in two shards."""
    root = make_root(tmp_path_factory.mktemp("project"))
    (root / "Snakefile").touch()
    write_yaml(root / "profiles" / "local" / "site.yaml", site_content(root))
    write_yaml(root / "config" / "models" / "tiny.yaml", RECIPE)
    for name in ("datasets.yaml", "prompts"):
        (root / "config" / name).unlink(missing_ok=True)
        (root / "config" / name).symlink_to(ROOT / "config" / name)
    make_model(root, parse_site(site_content(root), "site.yaml"), "tiny", 2)
    return root


@pytest.fixture
def shardwatt(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shardwatt:
    for name in ("SHARDWATT_ROOT", "SHARDWATT_SITE", "SHARDWATT_MODELS", "SHARDWATT_DATA"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: object, cwd: Path = made) -> Run:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["shardwatt", "model", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess([*map(str, words)], end.value.code, printed.out, printed.err)

    return run


@pytest.fixture
def two(made: Path) -> Path:
    return made / "models" / "tiny" / "shards-2"


def refusal(run: Run) -> str:
    assert run.returncode == 1, run.stdout
    assert "Traceback" not in run.stderr
    return run.stderr


def as_json(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_a_checkpoint_is_described_in_words(shardwatt: Shardwatt, two: Path) -> None:
    run = shardwatt("inspect", two, "--batch", 4)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    size = sum(path.stat().st_size for path in two.glob("*.pth"))
    amount, tokenizer = f"{size / 1e9:.2f} GB ({size / 2**30:.2f} GiB)", two.parent / "tokenizer.model"
    assert lines[0] == str(two)
    assert lines[1:7] == [
        f"weights     Meta's layout, saved in 2 shards, 2 files, {amount}, fp32",
        "parameters  59,552",
        "shape       2 layers, 4 heads of 8, width 32, feed-forward 96, vocabulary 512, untied embeddings",
        "context     512 positions, rotary base 10000",
        f"tokenizer   {tokenizer} (sentencepiece): 512 pieces, begin 1, end 2 by the tokenizer",
        "shards      1, 2, 4 allowed",
    ]
    assert "engine reference, fp32, batch 4, length 256, 512 positions of cache" in run.stdout
    assert [line.split()[0] for line in lines[-3:]] == ["1", "2", "4"]
    assert {line.split()[-1] for line in lines[-3:]} == {"16"}


def test_json_says_the_same_and_more(shardwatt: Shardwatt, two: Path) -> None:
    found = as_json(shardwatt("inspect", two, "--format", "json", "--engine", "fast", "--precision", "bf16"))
    assert found["layout"] == "meta"
    assert found["saved_shards"] == 2
    assert [file["name"] for file in found["files"]] == ["consolidated.00.pth", "consolidated.01.pth"]
    assert found["size_bytes"] == sum(file["size_bytes"] for file in found["files"])
    assert found["parameters"] == 59_552
    # The norms are in both shards.
    assert found["numbers"] == {"fp32": 59_552 + 5 * 32}
    assert found["architecture"]["head_size"] == 8
    assert found["eos_ids"] == [2]
    assert found["allowed_shards"] == [1, 2, 4]
    assert found["problems"] == []
    memory = found["memory"]
    assert (memory["engine"], memory["precision"], memory["positions"]) == ("fast", "bf16", 512)
    assert [rank["shards"] for rank in memory["ranks"]] == [1, 2, 4]
    first = memory["ranks"][0]
    assert first["weights_gib"] == 59_552 * 2 / 2**30
    assert first["total_gib"] == pytest.approx(
        sum(first[part + "_gib"] for part in ("weights", "kv_cache", "activations", "workspace"))
    )
    assert first["fits_gib"] == list(GPU_SIZES_GIB)


def test_a_model_of_the_site_is_found_by_its_name(shardwatt: Shardwatt, made: Path, two: Path) -> None:
    message = refusal(shardwatt("inspect", "tiny"))
    assert "model 'tiny' is not made yet; expected " in message
    assert message.endswith("shardwatt make-model tiny 1\n")
    (made / "models" / "mine").symlink_to(two)
    (made / "models" / "tokenizer.model").symlink_to(two.parent / "tokenizer.model")
    found = as_json(shardwatt("inspect", "mine", "--format", "json"))
    assert found["folder"] == str(made / "models" / "mine")
    assert "unknown model 'tinny'; did you mean 'tiny'?" in refusal(shardwatt("inspect", "tinny"))


def test_what_is_neither_a_folder_nor_a_name_is_told(shardwatt: Shardwatt, tmp_path: Path) -> None:
    assert "PATH is empty; expected a checkpoint's folder, or the name" in refusal(shardwatt("inspect", ""))
    assert f"{tmp_path / 'no'}: no such folder; expected a checkpoint's, or the name" in refusal(
        shardwatt("inspect", tmp_path / "no")
    )
    outside = refusal(shardwatt("inspect", "llama", cwd=tmp_path))
    assert outside.startswith("shardwatt: llama: no such folder, and for the name of a model: ")
    assert f"{tmp_path} holds no checkpoint; expected Meta's layout" in refusal(
        shardwatt("inspect", tmp_path)
    )


def test_without_deep_torch_is_not_imported(two: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom shardwatt.checks.model import memory_plan, model_facts\n"
        "from shardwatt.models import open_checkpoint\n"
        "facts = model_facts(open_checkpoint(Path(sys.argv[1])))\n"
        "plan = dict(engine='fast', precision='bf16', batch=1, length=8, cache_tokens=None)\n"
        "assert memory_plan(facts.architecture, **plan).ranks\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, str(two)], check=True)


def test_deep_reads_every_tensor_and_says_that_it_did(shardwatt: Shardwatt, two: Path) -> None:
    run = shardwatt("inspect", two, "--deep")
    assert run.returncode == 0, run.stderr
    assert run.stdout.endswith("every tensor is as params.json says, and finite\n")


def changed(two: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the checkpoint with its second shard changed."""
    folder.mkdir()
    for path in [*two.iterdir(), two.parent / "tokenizer.model"]:
        (folder / path.name).write_bytes(path.read_bytes())
    weights = torch.load(folder / "consolidated.01.pth", weights_only=True)
    change(weights)
    torch.save(weights, folder / "consolidated.01.pth")
    return folder


def test_deep_finds_numbers_that_are_none(shardwatt: Shardwatt, two: Path, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["layers.1.feed_forward.w2.weight"][3, 4:6] = torch.nan

    folder = changed(two, tmp_path / "spoilt", spoil)
    assert shardwatt("inspect", folder).returncode == 0
    run = shardwatt("inspect", folder, "--deep")
    assert refusal(run) == (
        f"shardwatt: {folder}: not as it should be:\n  layers.1.feed_forward.w2.weight: 2 of 3072 numbers "
        "are infinite or none; get a clean copy\n"
    )
    assert "every tensor is" not in run.stdout


def test_a_tensor_that_is_missing_shows_without_deep_and_with_it_once(
    shardwatt: Shardwatt, two: Path, tmp_path: Path
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        del weights["layers.1.ffn_norm.weight"]

    folder = changed(two, tmp_path / "spoilt", spoil)
    run = shardwatt("inspect", folder, "--format", "json")
    assert "consolidated.01.pth: layers.1.ffn_norm.weight missing; expected the 21 tensors" in refusal(run)
    (problem,) = as_json(run)["problems"]
    deep = as_json(shardwatt("inspect", folder, "--format", "json", "--deep"))["problems"]
    assert deep == [problem, "the weights were not opened: that comes first"]


def test_a_shape_and_a_type_that_do_not_belong_show_without_deep(
    shardwatt: Shardwatt, two: Path, tmp_path: Path
) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["norm.weight"] = torch.ones(16)
        weights["output.weight"] = weights["output.weight"].to(torch.int8)

    message = refusal(shardwatt("inspect", changed(two, tmp_path / "spoilt", spoil)))
    assert "norm.weight: found shape [16], expected [32] of this shard" in message
    assert "output.weight: found numbers of type int8, expected floating-point ones" in message


def test_a_last_shard_that_is_missing_shows_without_deep(
    shardwatt: Shardwatt, two: Path, tmp_path: Path
) -> None:
    folder = changed(two, tmp_path / "cut", lambda weights: None)
    (folder / "consolidated.01.pth").unlink()
    run = shardwatt("inspect", folder)
    assert "those of one of 2; the download is not complete" in refusal(run)
    assert ", saved in 1 shard, 1 file, " in run.stdout


def test_an_end_beyond_the_vocabulary_is_told(shardwatt: Shardwatt, two: Path, tmp_path: Path) -> None:
    folder = changed(two, tmp_path / "endless", lambda weights: None)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 512]}')
    assert "eos_token_id: found 512, and the model's vocabulary has 512 rows" in refusal(
        shardwatt("inspect", folder)
    )
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 511]}')
    assert as_json(shardwatt("inspect", folder, "--format", "json"))["eos_ids"] == [2, 511]


def test_deep_compares_files_with_the_sums_beside_them(
    shardwatt: Shardwatt, two: Path, tmp_path: Path
) -> None:
    folder = changed(two, tmp_path / "listed", lambda weights: None)
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in folder.glob("*.pth")
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))
    assert shardwatt("inspect", folder, "--deep").returncode == 0
    other = hashlib.sha256(b"another file").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{other}  consolidated.01.pth\n")
    assert shardwatt("inspect", folder).returncode == 0
    assert f"SHA256SUMS says {other}" in refusal(shardwatt("inspect", folder, "--deep"))


def test_a_cut_file_and_another_models_tokenizer_show_without_deep(
    shardwatt: Shardwatt, two: Path, tmp_path: Path
) -> None:
    folder = changed(two, tmp_path / "cut", lambda weights: None)
    content = (folder / "consolidated.01.pth").read_bytes()
    (folder / "consolidated.01.pth").write_bytes(content[: len(content) // 2])
    (folder / "tokenizer.model").write_bytes(b"pieces")
    problems = as_json(shardwatt("inspect", folder, "--format", "json"))["problems"]
    assert [problem.partition(":")[0] for problem in problems] == [
        str(folder / "tokenizer.model"),
        str(folder / "consolidated.01.pth"),
    ]
    assert "the weights were not opened" in refusal(shardwatt("inspect", folder, "--deep"))


def test_a_shape_that_does_not_run_here_is_told(shardwatt: Shardwatt, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "odd", 1, {"dim": 32, "n_heads": 3, "n_layers": 1, "vocab_size": 512})
    message = refusal(shardwatt("inspect", folder))
    assert message.startswith(f"shardwatt: {folder}: params.json: dim 32, n_heads 3")


def test_the_memory_table_is_that_of_the_memory_plan() -> None:
    plan = memory_plan(
        CATALOGUE["llama-65b"], engine="reference", precision="fp16", batch=64, length=256, cache_tokens=512
    )
    fits = {rank.shards: min(rank.fits_gib, default=None) for rank in plan.ranks}
    assert (fits[8], fits[4]) == (32, 80), "Table II of arXiv 2310.03003"
    grouped = memory_plan(
        CATALOGUE["tinyllama-1.1b"], engine="hf", precision="bf16", batch=1, length=8, cache_tokens=None
    )
    assert [rank.shards for rank in grouped.ranks] == [1, 2, 4], "transformers replicates no heads"


@pytest.mark.parametrize(("layout", "shards"), [("meta", 4), ("huggingface", 1)])
def test_a_copy_is_made_and_is_the_same_model(
    shardwatt: Shardwatt, two: Path, tmp_path: Path, layout: str, shards: int
) -> None:
    target = tmp_path / "copies" / "tiny"
    run = shardwatt("reshard", two, target, "--layout", layout, "--shards", shards)
    assert run.returncode == 0, run.stderr
    copy = open_checkpoint(target)
    assert (copy.layout, len(copy.weights)) == (layout, shards)
    assert run.stdout.startswith(f"{target}: ")
    assert run.stdout.rstrip().endswith("MB/s")
    assert f"{shards} file{'s' if shards > 1 else ''}, " in run.stdout
    assert f"{target}: 100 %" in run.stderr
    found = as_json(shardwatt("inspect", target, "--format", "json", "--deep"))
    assert found["parameters"] == 59_552
    assert found["problems"] == []


def test_a_copy_that_cannot_be_made_is_refused_and_leaves_nothing(
    shardwatt: Shardwatt, two: Path, tmp_path: Path
) -> None:
    target = tmp_path / "copy"
    assert "use one of 1, 2, 4" in refusal(shardwatt("reshard", two, target, "--shards", 3))
    assert "whole tensors" in refusal(
        shardwatt("reshard", two, target, "--shards", 2, "--layout", "huggingface")
    )
    assert "no such folder" in refusal(shardwatt("reshard", tmp_path / "no", target))
    assert not target.exists()
    target.mkdir()
    assert "is there already" in refusal(shardwatt("reshard", two, target))
    assert list(target.iterdir()) == []
