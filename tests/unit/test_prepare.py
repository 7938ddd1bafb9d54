"""Guards what cells read before they run: the same whoever makes it, whole or not there, and checked."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from shardwatt.checkpoints import ModelError
from shardwatt.data.fetch import DataError
from shardwatt.data.prompts import load_examples, load_prompts
from shardwatt.data.tokenizer import open_tokenizer
from shardwatt.datasets import CatalogueError, load_catalogue
from shardwatt.errors import CellFailure, Reason
from shardwatt.locks import alone
from shardwatt.models import find_checkpoint, open_checkpoint
from shardwatt.prepare import fetch_file, make_model, make_tokenizer
from shardwatt.site import Site, parse_site

ROOT = Path(__file__).parents[2]
RECIPE = """
about: a model for this test
dim: 32
n_layers: 1
n_heads: 2
context: 256
vocab_size: 1024
mean_response_tokens: 8
shards: [1, 2]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the real catalogue and prompts, and a recipe `tiny`; its path holds a space."""
    root = tmp_path / "a project"
    shutil.copytree(ROOT / "config" / "prompts", root / "config" / "prompts")
    shutil.copy(ROOT / "config" / "datasets.yaml", root / "config")
    (root / "config" / "models").mkdir()
    _write_recipe(root, RECIPE)
    return root


@pytest.fixture
def site(root: Path) -> Site:
    return parse_site(_site(root), "this test")


def _site(root: Path) -> dict[str, object]:
    return {
        "name": "test",
        "launcher": "local",
        "models": str(root / "models"),
        "data": str(root / "data"),
        "gpus": {"cpu": {"kind": "cpu", "per_node": 8, "memory_gib": 1}},
    }


def _write_recipe(root: Path, text: str) -> None:
    (root / "config" / "models" / "tiny.yaml").write_text(text, encoding="utf-8")


def test_the_demos_tokenizer_has_llamas_conventions_and_suits_its_prompts(root: Path, site: Site) -> None:
    path = make_tokenizer(root, site, "tiny")
    assert path == site.models / "tiny" / "tokenizer.model"
    tokenizer = open_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_ids) == (1024, 1, frozenset({2}))
    for number in ("100", "1000", "2000", "360", "60", "12"):
        assert tokenizer.count(number) - tokenizer.count(number[0]) == len(number) - 1, "digits stand apart"
    catalogue = load_catalogue(root)
    for name in ("demo-alpaca", "demo-gsm8k"):
        dataset = catalogue.dataset(name)
        prompts = load_prompts(name, dataset, dataset.path(root, site.data))
        lengths = sorted(len(tokenizer.encode(prompt.text)) for prompt in prompts)
        assert lengths[32] < 100, f"half of {name}"
        assert lengths[-1] < 256, f"the longest of {name} leaves half of the demo's context"
        assert all(tokenizer.decode(tokenizer.encode(prompt.text)) == prompt.text for prompt in prompts)


@pytest.mark.parametrize("name", ["demo-alpaca", "demo-gsm8k"])
def test_the_catalogue_has_the_demos_prompts_as_its_own_tokenizer_splits_them(
    root: Path, site: Site, name: str
) -> None:
    """LLaMA's would make them a sixth shorter, and the demo's forecast with them."""
    recipe = (ROOT / "config" / "models" / "demo-llama.yaml").read_text(encoding="utf-8")
    _write_recipe(root, recipe)
    tokenizer = open_tokenizer(make_tokenizer(root, site, "tiny"))
    dataset = load_catalogue(root).dataset(name)
    tokens = dataset.tokens
    assert tokens is not None
    examples = load_examples(name, dataset, dataset.path(root, site.data))
    prompts = sorted(len(tokenizer.encode(example.prompt)) for example in examples)
    cuts = statistics.quantiles(prompts, n=10, method="inclusive")
    assert tokens.prompt_deciles == [prompts[0], *map(round, cuts), prompts[-1]]
    answers = [tokenizer.count(re.sub("<<.*?>>", "", example.answer)) for example in examples]
    assert (min(answers), max(answers)) == (tokens.output_deciles[0], tokens.output_deciles[-1])
    assert statistics.fmean(answers) == pytest.approx(tokens.output_mean, abs=0.5)


def test_a_tokenizer_is_the_same_every_time_and_left_alone_where_it_is_right(root: Path, site: Site) -> None:
    path = make_tokenizer(root, site, "tiny")
    first = path.stat()
    content = path.read_bytes()
    make_tokenizer(root, site, "tiny")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    path.unlink()
    assert make_tokenizer(root, site, "tiny").read_bytes() == content
    path.write_bytes(content[:1000])
    assert make_tokenizer(root, site, "tiny").read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_more_pieces_than_the_texts_can_give_are_refused(root: Path, site: Site) -> None:
    _write_recipe(root, RECIPE.replace("1024", "32000"))
    with pytest.raises(ModelError, match=r"vocab_size: 32000: no tokenizer .* value <= "):
        make_tokenizer(root, site, "tiny")


def test_a_recipe_that_is_not_there_is_named_with_a_suggestion(root: Path, site: Site) -> None:
    with pytest.raises(ModelError, match="no recipe for model 'tinny'; did you mean 'tiny'"):
        make_tokenizer(root, site, "tinny")
    with pytest.raises(ModelError, match=r"tinny\.yaml is not there; recipes: tiny"):
        make_model(root, site, "tinny", 1)


def test_a_shard_count_that_the_recipe_does_not_name_is_refused(root: Path, site: Site) -> None:
    with pytest.raises(
        ModelError, match="is made in 1, 2 shards, which any number of ranks reads, and not in 4"
    ):
        make_model(root, site, "tiny", 4)
    assert not site.models.exists()


def test_a_shard_count_that_does_not_divide_the_model_is_refused(root: Path, site: Site) -> None:
    _write_recipe(root, RECIPE.replace("[1, 2]", "[1, 3]"))
    with pytest.raises(ModelError, match=r"tiny\.yaml: shards: 3 does not divide the model; use 1, 2$"):
        make_model(root, site, "tiny", 3)
    assert not site.models.exists()


def test_without_shards_in_the_recipe_one_file_is_made_for_all(root: Path, site: Site) -> None:
    _write_recipe(root, RECIPE.replace("shards: [1, 2]\n", ""))
    folder = make_model(root, site, "tiny", 1)
    for shards in (1, 2):
        found = find_checkpoint(root, site.models, "tiny", shards)
        assert found.folder == folder
        assert all(path.is_file() for path in found.files)
    assert open_checkpoint(folder) == found, "and it is one like any other"


def test_a_named_tokenizer_is_copied_only_if_its_hash_is_right(root: Path, site: Site) -> None:
    _write_recipe(root, RECIPE.replace("vocab_size: 1024", "tokenizer: llama"))
    site.data.mkdir()
    (site.data / "llama_tokenizer.model").write_bytes(b"another tokenizer")
    with pytest.raises(DataError, match=r"llama_tokenizer\.model: has SHA-256 .* where 9e556afd"):
        make_model(root, site, "tiny", 1)
    assert not site.models.exists()


def test_a_named_tokenizer_that_the_catalogue_lacks_is_refused(root: Path, site: Site) -> None:
    _write_recipe(root, RECIPE.replace("vocab_size: 1024", "tokenizer: lama"))
    with pytest.raises(CatalogueError, match="unknown tokenizer 'lama'; did you mean 'llama'"):
        make_tokenizer(root, site, "tiny")


def test_only_files_of_the_catalogue_are_fetched(root: Path, site: Site) -> None:
    with pytest.raises(CatalogueError, match=r"unknown data file 'gsm8k\.jsonl'; did you mean 'gsm8k_t"):
        fetch_file(root, site, "gsm8k.jsonl")
    with pytest.raises(CatalogueError, match=r"unknown data file '\.\./secret'"):
        fetch_file(root, site, "../secret")
    with pytest.raises(CatalogueError, match=r"unknown data file 'demo-alpaca\.json'"):
        fetch_file(root, site, "demo-alpaca.json")  # a file of the project, in no data folder


def test_all_who_make_a_model_at_once_are_right_and_who_waited_uses_the_firsts(
    root: Path, site: Site
) -> None:
    """Cells may be reading it by then: it is not made again under them."""
    program = textwrap.dedent(
        """
        import json, logging, sys
        from pathlib import Path
        from shardwatt.prepare import make_model
        from shardwatt.site import parse_site
        logging.basicConfig(stream=sys.stdout, format="%(message)s", level="INFO")
        site = parse_site(json.loads(sys.argv[2]), "test")
        made = make_model(Path(sys.argv[1]), site, "tiny", int(sys.argv[3]))
        print(made, (made / "consolidated.00.pth").stat().st_ino)
        """
    )
    content = site.model_dump_json(exclude_none=True)
    model = site.models / "tiny"
    lock = model / ".shards-1.lock"
    with alone(lock):
        makers = [
            subprocess.Popen(
                [sys.executable, "-c", program, str(root), content, str(shards)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for shards in (1, 1, 2)
        ]
        for maker in makers[:2]:
            assert maker.stdout is not None
            assert maker.stdout.readline() == f"waiting for another process, which holds {lock}\n"
    one, same, two = (maker.communicate()[0].strip() for maker in makers)
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert one == same == f"{model / 'shards-1'} {_inode(model / 'shards-1')}"
    assert two == f"{model / 'shards-2'} {_inode(model / 'shards-2')}"
    made = sorted(str(path.relative_to(model)) for path in model.rglob("*") if path.is_file())
    assert made == [
        ".shards-1.lock",
        ".shards-2.lock",
        "shards-1/consolidated.00.pth",
        "shards-1/made-from.json",
        "shards-1/params.json",
        "shards-2/consolidated.00.pth",
        "shards-2/consolidated.01.pth",
        "shards-2/made-from.json",
        "shards-2/params.json",
        "tokenizer.model",
    ]
    lock.unlink()
    make_model(root, site, "tiny", 1)
    assert not lock.exists(), "one that is there may lie where this user cannot write"
    content_together = (model / "tokenizer.model").read_bytes()
    (model / "tokenizer.model").unlink()
    assert make_tokenizer(root, site, "tiny").read_bytes() == content_together


def _inode(folder: Path) -> int:
    return (folder / "consolidated.00.pth").stat().st_ino


@pytest.mark.skipif("SHARDWATT_TEST_DATA" not in os.environ, reason="SHARDWATT_TEST_DATA is not set")
def test_llamas_tokenizer_is_found_in_the_data_folder_and_kept(root: Path) -> None:
    _write_recipe(root, RECIPE.replace("vocab_size: 1024", "tokenizer: llama"))
    with_data = parse_site({**_site(root), "data": os.environ["SHARDWATT_TEST_DATA"]}, "this test")
    path = make_tokenizer(root, with_data, "tiny")
    assert open_tokenizer(path).vocab_size == 32_000
    first = path.stat().st_ino
    # The copy is right, so that neither the data folder nor the network is needed again.
    assert make_tokenizer(root, parse_site(_site(root), "this test"), "tiny").stat().st_ino == first


@pytest.mark.skipif("SHARDWATT_TEST_DATA" not in os.environ, reason="SHARDWATT_TEST_DATA is not set")
@pytest.mark.parametrize("file", ["alpaca_5000.json", "gsm8k_train.jsonl", "llama_tokenizer.model"])
def test_files_of_a_configured_folder_are_used_where_they_lie(root: Path, file: str) -> None:
    data = os.environ["SHARDWATT_TEST_DATA"]
    with_data = parse_site({**_site(root), "data": data}, "this test")
    assert fetch_file(root, with_data, file) == Path(data) / file


def test_a_tokenizer_of_another_vocabulary_than_the_models_is_refused(root: Path, site: Site) -> None:
    # LLaMA's name is all that the shape is known by; a catalogue may give that name to another file.
    catalogue = (root / "config" / "datasets.yaml").read_text(encoding="utf-8")
    head = catalogue.partition("tokenizers:")[0]
    (root / "config" / "datasets.yaml").write_text(
        f"{head}tokenizers:\n  llama:\n    folder: config\n    file: other.model\n", encoding="utf-8"
    )
    trained = make_tokenizer(root, site, "tiny")
    shutil.move(trained, root / "config" / "other.model")
    _write_recipe(root, RECIPE.replace("vocab_size: 1024", "tokenizer: llama"))
    with pytest.raises(CellFailure, match="has 1024 pieces, and the model's vocabulary has 32000") as caught:
        make_model(root, site, "tiny", 1)
    assert caught.value.reason is Reason.BAD_TOKENIZER
    assert not (site.models / "tiny" / "shards-1").exists()
