"""Made models are the same at every shard count, and their responses end by themselves as asked."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import engine_tiny
from shardwatt.architectures import from_params
from shardwatt.engine.make_weights import make_weights
from shardwatt.engine.protocol import Sampling
from shardwatt.engine.reference import load
from shardwatt.models import Checkpoint, Recipe

COLUMNS = ("wo.weight", "w2.weight", "tok_embeddings.weight")
PUBLISHED = Sampling(temperature=0.8, top_p=0.95, seed=5)


def whole(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Put the shards together as Meta's loaders do."""
    shards = [torch.load(path, weights_only=True) for path in checkpoint.weight_files]
    return {
        name: first
        if first.dim() == 1
        else torch.cat([shard[name] for shard in shards], dim=1 if name.endswith(COLUMNS) else 0)
        for name, first in shards[0].items()
    }


@pytest.mark.parametrize("shards", [2, 4])
def test_shards_hold_the_same_model(tmp_path: Path, shards: int) -> None:
    single = whole(engine_tiny.make(tmp_path / "one"))
    checkpoint = engine_tiny.make(tmp_path / "more", shards)
    several = whole(checkpoint)
    assert single.keys() == several.keys()
    assert all(torch.equal(tensor, several[name]) for name, tensor in single.items())
    # No shard file drags the whole tensor behind its slice.
    sizes = [path.stat().st_size for path in checkpoint.weight_files]
    numbers = sum(tensor.numel() for tensor in single.values())
    assert max(sizes) < 4 * numbers / shards * 1.2 + 10_000


def test_params_describe_the_model(tmp_path: Path) -> None:
    checkpoint = engine_tiny.make(tmp_path / "model", kv_heads=2)
    params = json.loads(checkpoint.params.read_text())
    assert from_params(params) == engine_tiny.shape(kv_heads=2)
    assert {"dim", "n_layers", "n_heads", "multiple_of", "norm_eps", "vocab_size", "max_seq_len"} <= set(
        params
    )


def test_another_seed_makes_another_model(tmp_path: Path) -> None:
    first = whole(engine_tiny.make(tmp_path / "first"))
    other = engine_tiny.RECIPE.model_copy(update={"seed": 4})
    make_weights(other, engine_tiny.shape(), 1, tmp_path / "second", engine_tiny.EOS)
    second = whole(engine_tiny.saved(tmp_path / "second"))
    assert not torch.equal(first["output.weight"], second["output.weight"])


def test_a_folder_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "a folder" / "shards-1"
    folder.mkdir(parents=True)
    (folder / "consolidated.07.pth").write_text("of an older model")
    engine_tiny.make(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "consolidated.00.pth",
        "made-from.json",
        "params.json",
    ]
    assert [path.name for path in folder.parent.iterdir()] == ["shards-1"]


def test_a_folder_that_fits_is_kept_and_one_of_another_recipe_or_shape_is_not(tmp_path: Path) -> None:
    """Cells of another project may be reading it."""
    folder = tmp_path / "shards-1"

    def made(recipe: Recipe, kv_heads: int = 4) -> int:
        make_weights(recipe, engine_tiny.shape(kv_heads), 1, folder, engine_tiny.EOS)
        return folder.stat().st_ino

    recipe = engine_tiny.RECIPE
    first = made(recipe)
    assert made(recipe) == first
    other = recipe.model_copy(update={"seed": recipe.seed + 1})
    kept = folder.rename(tmp_path / "kept")
    second = made(other)
    assert kept.stat().st_ino == first
    assert made(other) == second
    third = made(recipe)
    assert third != second
    fourth = made(recipe, kv_heads=2)
    assert fourth != third
    (folder / "consolidated.00.pth").unlink()
    assert made(recipe, kv_heads=2) != fourth


def answers(folder: Path, recipe: Recipe, rows: int, length: int) -> tuple[list[list[int]], list[str]]:
    """Answer seeded random prompts of a made model with the published sampling."""
    params = recipe.model_dump(include={"dim", "n_layers", "n_heads", "multiple_of", "vocab_size"})
    architecture = from_params(params)
    never = (0, 1, 299)
    make_weights(recipe, architecture, 1, folder / "model", engine_tiny.EOS, never)
    prompt = torch.randint(3, recipe.vocab_size, (rows, 12), generator=torch.Generator().manual_seed(1))
    with engine_tiny.alone(folder / "group"):
        engine = load(engine_tiny.on_rank(engine_tiny.saved(folder / "model"), architecture))
        engine.allocate(rows, 12 + length)
        request = engine_tiny.ask(prompt.tolist(), length, 12 + length)
        result = engine.generate(request, PUBLISHED, lambda step: None)
    return result.tokens, [str(finish) for finish in result.finish]


@pytest.mark.parametrize(("vocab_size", "mean", "rows"), [(1024, 12, 192), (8_000, 4, 48)])
def test_responses_end_by_themselves_at_the_mean_asked_for(
    tmp_path: Path, vocab_size: int, mean: float, rows: int
) -> None:
    recipe = Recipe(
        about="ends by itself",
        dim=64,
        n_layers=2,
        n_heads=4,
        vocab_size=vocab_size,
        mean_response_tokens=mean,
        shards=[1],
    )
    tokens, finish = answers(tmp_path, recipe, rows, length=int(mean * 14))
    lengths = [len(row) for row in tokens]
    assert set(finish) == {"eos"}
    assert len(set(lengths)) > 5
    # Ends that come with equal chance at every step give a geometric distribution of tokens before
    # them, whose standard deviation is sqrt(m (m + 1)): four standard errors.
    error = math.sqrt(mean * (mean + 1) / rows)
    assert abs(sum(lengths) / rows - mean) < 4 * error
    # Ids that decode to nothing sensible are never drawn, and the model does not repeat itself.
    drawn = {token for row in tokens for token in row}
    assert not drawn & {0, 1, 299}
    assert len(drawn) > 100
