"""Guards the catalogue of data sets: nothing from outside without a hash, and clear messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardwatt.datasets import CatalogueError, load_catalogue
from small_project import DATASETS, write_yaml

ROOT = Path(__file__).parents[2]


def write(root: Path, **changes: Any) -> Path:
    """A catalogue of one data set; keys replaced, or left out where they are None."""
    entry = {key: value for key, value in {**DATASETS["gsm8k"], **changes}.items() if value is not None}
    return write_yaml(root / "config" / "datasets.yaml", {"datasets": {"gsm8k": entry}})


def test_a_file_lies_in_the_data_folder_or_in_one_of_the_projects(tmp_path: Path) -> None:
    write(tmp_path)
    entry = load_catalogue(tmp_path).dataset("gsm8k")
    assert entry.path(tmp_path, Path("/data")) == Path("/data/gsm8k.jsonl")
    write(tmp_path, folder="config/prompts")
    entry = load_catalogue(tmp_path).dataset("gsm8k")
    assert entry.path(tmp_path, Path("/data")) == tmp_path / "config" / "prompts" / "gsm8k.jsonl"


def test_only_the_projects_own_files_may_go_without_a_hash(tmp_path: Path) -> None:
    path = write(tmp_path, sha256=None)
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(tmp_path)
    assert str(caught.value) == (
        f"{path}: datasets.gsm8k: expected sha256 or git_blob: what comes from outside is checked"
    )
    write(tmp_path, sha256=None, folder="config/prompts")
    assert load_catalogue(tmp_path).dataset("gsm8k").sha256 is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fromat": "gsm8k"}, "datasets.gsm8k.fromat: unknown key; did you mean 'format'?; allowed: "),
        (
            {"format": "gsm8"},
            "found 'gsm8'; did you mean 'gsm8k'?; expected 'alpaca' or 'gsm8k'",
        ),
        (
            {"file": "../gsm8k"},
            "found '../gsm8k'; expected a file's name without folders",
        ),
        ({"file": ".gsm8k"}, "found '.gsm8k'; expected a file's name without folders"),
        ({"sha256": "B" * 64}, "expected 64 lower-case hexadecimal digits"),
        ({"git_blob": "b" * 64}, "expected 40 lower-case hexadecimal digits"),
        ({"url": "http://example.org/x"}, "expected an address that begins with https://"),
        ({"url": "https://"}, "expected an address that begins with https://"),
    ],
)
def test_a_mistake_is_named_by_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(tmp_path)
    assert str(caught.value).startswith(f"{path}: datasets.gsm8k.")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_data_set_or_tokenizer_gets_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path)
    catalogue = load_catalogue(tmp_path)
    with pytest.raises(CatalogueError, match=r"unknown data set 'gms8k'; did you mean 'gsm8k'\?"):
        catalogue.dataset("gms8k")
    with pytest.raises(CatalogueError, match=r"unknown tokenizer 'llama'; config/datasets\.yaml has none"):
        catalogue.tokenizer("llama")


def test_a_project_without_a_catalogue_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match=r"datasets\.yaml: cannot be read: No such file or directory"):
        load_catalogue(tmp_path)


def test_every_address_in_the_projects_catalogue_is_pinned_to_a_revision() -> None:
    catalogue = load_catalogue(ROOT)
    for entry in [*catalogue.datasets.values(), *catalogue.tokenizers.values()]:
        assert (entry.url is None) == (entry.folder is not None)
        if entry.url is not None:
            assert any(len(part) == 40 for part in entry.url.split("/")), entry.url
            assert entry.licence or entry in catalogue.tokenizers.values()


LENGTHS = {"prompt_deciles": list(range(10, 120, 10)), "output_mean": 50, "source": "counted"}


def test_lengths_are_for_the_plan_and_may_be_left_out(tmp_path: Path) -> None:
    write(tmp_path)
    assert load_catalogue(tmp_path).dataset("gsm8k").tokens is None
    write(tmp_path, tokens={**LENGTHS, "prompt_tail": [101, 105, 109]})
    tokens = load_catalogue(tmp_path).dataset("gsm8k").tokens
    assert tokens is not None
    assert tokens.prompt_deciles[10] == 110
    assert tokens.output_mean == 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_deciles": [10, 20]}, "expected 11 prompt_deciles, and 3 counts of prompt_tail or none"),
        ({"prompt_tail": [101]}, "expected 11 prompt_deciles, and 3 counts of prompt_tail or none"),
        ({"prompt_deciles": [20, 10, *range(30, 120, 10)]}, "expected counts that never fall"),
        ({"prompt_tail": [90, 105, 109]}, "expected counts that never fall"),
        ({"prompt_tail": [101, 105, 111]}, "expected counts that never fall"),
        ({"prompt_deciles": [0, *range(20, 120, 10)]}, "tokens.prompt_deciles.0"),
        ({"output_mean": 0}, "tokens.output_mean"),
        ({"source": ""}, "tokens.source"),
    ],
)
def test_lengths_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path, tokens={**LENGTHS, **changes})
    with pytest.raises(CatalogueError) as caught:
        load_catalogue(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_data_set_of_the_projects_catalogue_says_how_long_it_is() -> None:
    for name, entry in load_catalogue(ROOT).datasets.items():
        assert entry.tokens is not None, name
        assert len(entry.tokens.prompt_tail) == 3, name
        assert "assum" in entry.tokens.source, f"{name}: nobody has counted its responses"
