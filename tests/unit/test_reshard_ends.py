"""A copy begins and ends sequences as its original does, whichever file of the original said so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints_tiny import SHAPES, tiny
from shardwatt.data.tokenizer import open_tokenizer
from shardwatt.engine.reshard import reshard
from shardwatt.models import Checkpoint, Layout, declared_eos_ids, open_checkpoint
from tokenizers_tiny import converted, sentencepiece_model

LAYOUTS: list[tuple[Layout, int]] = [("meta", 2), ("huggingface", 1)]


def model(folder: Path, layout: Layout, config: Any = None, generation: Any = None) -> Checkpoint:
    """A model whose tokenizer ends sequences with 2; the other files say what is given."""
    checkpoint, _ = tiny(folder, "llama3", layout)
    content = sentencepiece_model(512)
    checkpoint.tokenizer.write_bytes(content if layout == "meta" else converted(content).to_str().encode())
    if layout == "huggingface":
        shape = json.loads(checkpoint.params.read_text())
        checkpoint.params.write_text(json.dumps(shape | {"eos_token_id": config}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return checkpoint


def ends(checkpoint: Checkpoint) -> frozenset[int]:
    """As a run takes them."""
    return declared_eos_ids(checkpoint) or open_tokenizer(checkpoint.tokenizer).eos_ids


def copied(source: Checkpoint, target: Path, layout: Layout, shards: int) -> Checkpoint:
    tokenizer = open_tokenizer(source.tokenizer)
    reshard(
        *(source, SHAPES["llama3"], target),
        layout=layout,
        shards=shards,
        bos_id=tokenizer.bos_id,
        eos_ids=tokenizer.eos_ids,
    )
    return open_checkpoint(target)


@pytest.mark.parametrize("then", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize(
    "generation", [None, {"top_k": 5}, {"eos_token_id": None}, {"eos_token_id": [2, 5, 9]}]
)
@pytest.mark.parametrize(("layout", "config"), [("meta", None), ("huggingface", None), ("huggingface", 7)])
def test_a_copy_of_a_copy_ends_as_the_original(
    tmp_path: Path,
    layout: Layout,
    config: int | None,
    generation: dict[str, Any] | None,
    first: tuple[Layout, int],
    then: tuple[Layout, int],
) -> None:
    source = model(tmp_path / "source", layout, config, generation)
    wanted = {2} if config is None else {config}
    if generation and generation.get("eos_token_id"):
        wanted = set(generation["eos_token_id"])
    assert ends(source) == wanted
    copy = copied(source, tmp_path / "first", *first)
    assert ends(copy) == wanted
    copy = copied(copy, tmp_path / "second", *then)
    assert ends(copy) == wanted
    if generation and "top_k" in generation:
        assert json.loads((copy.folder / "generation_config.json").read_text())["top_k"] == 5


def test_transformers_finds_the_ends_of_metas_model(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = model(tmp_path / "source", "meta")
    copy = copied(source, tmp_path / "copy", "huggingface", 1)
    found = transformers.LlamaForCausalLM.from_pretrained(copy.folder, dtype=torch.float32)
    for said in (found.config, found.generation_config):
        assert (said.bos_token_id, said.eos_token_id) == (1, 2)


def test_several_ends_stay_several_in_the_other_layout(tmp_path: Path) -> None:
    generation = {"bos_token_id": 3, "eos_token_id": [9, 2]}
    source = model(tmp_path / "source", "huggingface", 2, generation)
    copy = copied(source, tmp_path / "copy", "meta", 4)
    assert json.loads((copy.folder / "generation_config.json").read_text()) == generation
    back = copied(copy, tmp_path / "back", "huggingface", 1)
    config = json.loads(back.params.read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (3, [2, 9])


def test_what_lies_beside_a_shared_tokenizer_says_nothing_of_the_ends(tmp_path: Path) -> None:
    source = model(tmp_path / "model" / "shards-1", "meta")
    source.tokenizer.rename(tmp_path / "model" / "tokenizer.model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 77}')
    source = open_checkpoint(source.folder)
    assert ends(source) == {2}
    assert ends(copied(source, tmp_path / "copy", "meta", 2)) == {2}


def test_the_tokenizers_own_settings_come_from_beside_it(tmp_path: Path) -> None:
    source = model(tmp_path / "model" / "hf", "huggingface")
    source.tokenizer.rename(tmp_path / "model" / "tokenizer.json")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (source.folder / "tokenizer_config.json").write_text('{"eos_token": "<unk>"}')
    source = open_checkpoint(source.folder)
    copy = copied(source, tmp_path / "copy", "huggingface", 1)
    assert open_tokenizer(copy.tokenizer).eos_ids == open_tokenizer(source.tokenizer).eos_ids
