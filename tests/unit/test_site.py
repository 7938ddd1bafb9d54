"""Guards site files: what they mean, what replaces what, and one clear message for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardwatt.errors import SiteError
from shardwatt.site import load_site, parse_site
from small_project import GPUS, make_site, site_content, write_yaml


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SHARDWATT_MODELS", "SHARDWATT_DATA"):
        monkeypatch.delenv(variable, raising=False)


def gpu(**changes: Any) -> dict[str, Any]:
    return {"gpus": {"v100": {**GPUS["v100"], **changes}}}


def test_a_site_says_what_a_place_offers(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert site.gpus["v100"].memory_gib == 32
    assert site.gpus["v100"].tdp_w is None, "no power is made up where none is given"
    assert site.models == tmp_path / "models"


def test_later_files_replace_keys_of_earlier_ones(tmp_path: Path) -> None:
    first = write_yaml(tmp_path / "site.yaml", site_content(tmp_path))
    second = write_yaml(tmp_path / "mine.yaml", {"name": "mine", **gpu(memory_gib=16)})
    site = load_site([first, second])
    assert site.name == "mine"
    assert list(site.gpus) == ["v100"]
    assert site.models == tmp_path / "models"


def test_a_mistake_in_several_files_names_them_all(tmp_path: Path) -> None:
    first = write_yaml(tmp_path / "site.yaml", site_content(tmp_path))
    second = write_yaml(tmp_path / "mine.yaml", {"lancher": "local"})
    with pytest.raises(SiteError, match=rf"^{first}, {second}: lancher: unknown key"):
        load_site([first, second])


def test_environment_variables_replace_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWATT_MODELS", "/scratch/my models")
    monkeypatch.setenv("SHARDWATT_DATA", "data/here")
    site = make_site(tmp_path)
    assert site.models == Path("/scratch/my models")
    assert site.data == Path("data/here")


def test_an_empty_variable_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWATT_MODELS", "")
    assert make_site(tmp_path).models == tmp_path / "models"


def test_variables_stand_in_for_folders_that_the_file_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = {key: value for key, value in site_content(tmp_path).items() if key not in ("models", "data")}
    with pytest.raises(SiteError, match="models: is missing; expected: Folder with a folder for each model"):
        parse_site(content, "site.yaml")
    monkeypatch.setenv("SHARDWATT_MODELS", "m")
    monkeypatch.setenv("SHARDWATT_DATA", "d")
    assert parse_site(content, "site.yaml").models == Path("m")


def test_no_site_at_all_says_how_to_give_one() -> None:
    with pytest.raises(SiteError, match="run with --profile profiles/local, or pass one with --configfile"):
        load_site([])


def test_a_site_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"nowhere\.yaml: cannot be read: No such file or directory"):
        load_site([tmp_path / "nowhere.yaml"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"launcher": "lokal"}, "launcher: found 'lokal'; did you mean 'local'?; expected 'local'"),
        ({"name": "My Site"}, "name: found 'My Site'; expected lower-case letters, digits and -"),
        ({"models": 3}, "models: found 3; expected a path"),
        ({"gpus": {}}, "gpus: found {}; expected at least one entry"),
        ({"gpus": None}, "gpus: found nothing; expected keys and values"),
        (
            {"gpus": {"V100": GPUS["v100"]}},
            "gpus.V100: found 'V100'; expected lower-case letters and digits, with single . _ - between them",
        ),
        (
            gpu(memroy_gib=3),
            "gpus.v100.memroy_gib: unknown key; did you mean 'memory_gib'?; "
            "allowed: kind, memory_gib, per_node, tdp_source, tdp_w",
        ),
        (gpu(kind="rocm"), "gpus.v100.kind: found 'rocm'; expected 'cuda' or 'cpu'"),
        (gpu(per_node=0), "gpus.v100.per_node: found 0; expected at least 1"),
        (gpu(per_node="2"), "gpus.v100.per_node: found '2'; expected a whole number"),
        (gpu(memory_gib="32 GiB"), "gpus.v100.memory_gib: found '32 GiB'; expected a number"),
        (gpu(memory_gib=float("inf")), "gpus.v100.memory_gib: found inf; expected a finite number"),
        (gpu(tdp_w=0), "gpus.v100.tdp_w: found 0; expected more than 0"),
        ({"start_timeout_s": -1}, "start_timeout_s: found -1; expected more than 0"),
        ({"threads_per_rank": 1.5}, "threads_per_rank: found 1.5; expected a whole number"),
    ],
)
def test_a_mistake_gets_one_message_with_key_found_and_allowed(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SiteError) as caught:
        make_site(tmp_path, **changes)
    assert str(caught.value) == f"site.yaml: {message}"
