"""Guards study files: what they mean, and one clear message for each mistake that a user can make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.errors import StudyError
from shardwatt.study import Constants, Study, load_study, study_file, study_names
from small_project import blocks, make_root, study_content, write_yaml


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


def load(root: Path, **changes: Any) -> Study:
    write_yaml(study_file(root, "mine"), study_content(**changes))
    return load_study(root, "mine")


def refusal(root: Path, **changes: Any) -> str:
    """The message without the file's name, which it begins with."""
    with pytest.raises(StudyError) as caught:
        load(root, **changes)
    file, _, message = str(caught.value).partition(": ")
    assert file == str(study_file(root, "mine"))
    return message


def test_an_axis_is_one_value_or_a_list(root: Path) -> None:
    block = load(root, **blocks(batch=[64, 128], shards=["minimum", 16], cap=[250, "none"])).matrix[0]
    assert block.batch == [64, 128]
    assert block.model == ["llama-65b"]
    assert block.shards == ["minimum", 16]
    assert block.cap == [250, "none"]
    assert (block.engine, block.precision, block.repeat) == (["reference"], ["fp16"], [1])


def test_the_published_sampling_is_the_default(root: Path) -> None:
    study = load(root)
    assert (study.temperature, study.top_p) == (0.8, 0.95)


def test_constants_are_the_studys_without_its_matrix(root: Path) -> None:
    study = load(root, seed=7, cache_tokens=512)
    assert study.constants == Constants(prompts=8, seed=7, cache_tokens=512)
    assert study.constants.hash == load(root, seed=7, cache_tokens=512, title="Another").constants.hash


@given(st.integers(1, 999), st.integers(0, 2**63 - 1), st.floats(0, 10), st.sampled_from([None, 5, 512]))
def test_the_hash_tells_constants_apart(
    prompts: int, seed: int, temperature: float, cache_tokens: int | None
) -> None:
    mine = Constants(prompts=prompts, seed=seed, temperature=temperature, cache_tokens=cache_tokens)
    assert mine.hash == Constants.model_validate_json(mine.model_dump_json()).hash
    assert mine.hash != mine.model_copy(update={"prompts": prompts + 1}).hash
    assert mine.hash != mine.model_copy(update={"top_p": 0.5}).hash


def test_a_studys_hash_does_not_drift() -> None:
    """Records on disk are compared with it: if this changes, every finished cell is outdated."""
    assert Constants(prompts=8).hash == "88dfb141b6e7b417"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"promts": 3},
            "promts: unknown key; did you mean 'prompts'?; allowed: cache_tokens, cool_down_c, "
            "cool_down_max_s, cuda_graphs, energy, exclude, idle_read_s, idle_settle_s, matrix, prompts, "
            "seed, temperature, title, top_p, warmup_tokens",
        ),
        ({"prompts": 0}, "prompts: found 0; expected at least 1"),
        ({"prompts": 1_000_000}, "prompts: found 1000000; expected at most 999999"),
        ({"prompts": "four"}, "prompts: found 'four'; expected a whole number"),
        ({"prompts": 4.0}, "prompts: found 4.0; expected a whole number"),
        ({"prompts": None}, "prompts: found nothing; expected a whole number"),
        ({"seed": True}, "seed: found true; expected a whole number"),
        ({"seed": "1"}, "seed: found '1'; expected a whole number"),
        ({"title": 2023}, "title: found 2023; expected text; put it in quotes if it is meant so"),
        ({"temperature": "hot"}, "temperature: found 'hot'; expected a number"),
        ({"temperature": -0.1}, "temperature: found -0.1; expected at least 0"),
        ({"temperature": float("nan")}, "temperature: found nan; expected a finite number"),
        ({"top_p": 0}, "top_p: found 0; expected more than 0"),
        ({"top_p": 1.5}, "top_p: found 1.5; expected at most 1.0"),
        ({"matrix": []}, "matrix: found []; expected at least one entry"),
        ({"matrix": {"model": "x"}}, "matrix: found {'model': 'x'}; expected a list"),
        ({"matrix": ["x"]}, "matrix.0: found 'x'; expected keys and values"),
        (
            blocks(modle="x"),
            "matrix.0.modle: unknown key; did you mean 'model'?; allowed: batch, cap, dataset, engine, gpu, "
            "length, model, name, precision, repeat, shards",
        ),
        (blocks(model=[]), "matrix.0.model: found []; expected at least one entry"),
        (
            blocks(model=7),
            "matrix.0.model: found 7; expected text; put it in quotes if it is meant so",
        ),
        (
            blocks(model="../llama"),
            "matrix.0.model: found '../llama'; expected lower-case letters and digits, "
            "with single . _ - between them",
        ),
        (
            blocks(dataset=["gsm8k", "Alpaca"]),
            "matrix.0.dataset.1: found 'Alpaca'; expected lower-case letters and digits, "
            "with single . _ - between them",
        ),
        (blocks(precision="fp8"), "matrix.0.precision: found 'fp8'; expected 'fp32', 'bf16' or 'fp16'"),
        (
            blocks(precision="fp61"),
            "matrix.0.precision: found 'fp61'; did you mean 'fp16'?; expected 'fp32', 'bf16' or 'fp16'",
        ),
        (
            blocks(shards="minimun"),
            "matrix.0.shards: found 'minimun'; expected a whole number from 1 to 999999, or 'minimum'; "
            "did you mean 'minimum'?",
        ),
        (
            blocks(shards=[8, 0]),
            "matrix.0.shards.1: found 0; expected a whole number from 1 to 999999, or 'minimum'",
        ),
        (blocks(cap=-1), "matrix.0.cap: found -1; expected a whole number from 1 to 999999, or 'none'"),
        (blocks(batch=[4, "x"]), "matrix.0.batch.1: found 'x'; expected a whole number"),
        (blocks(batch=[8, 4, 8]), "matrix.0.batch: 8 stands 2 times; expected each value once"),
        (
            blocks(dataset=["gsm8k", "gsm8k"]),
            "matrix.0.dataset: 'gsm8k' stands 2 times; expected each value once",
        ),
        ({"exclude": {}}, "exclude: found {}; expected a list"),
        (
            {"exclude": [{}]},
            "exclude.0: an empty entry would exclude every cell; name at least one axis",
        ),
        (
            {"exclude": [{"batch": 4}, {"modle": "x"}]},
            "exclude.1: unknown axis 'modle'; did you mean 'model'?; allowed: engine, model, precision, gpu, "
            "shards, batch, length, dataset, cap, repeat",
        ),
        (
            {"exclude": [{"batch": "many"}]},
            "exclude.0: 'many' is no value of axis batch; expected a whole number",
        ),
        ({"exclude": [{"batch": []}]}, "exclude.0.batch: found []; expected at least one entry"),
    ],
)
def test_a_mistake_gets_one_message_with_key_found_and_allowed(
    root: Path, changes: dict[str, Any], message: str
) -> None:
    assert refusal(root, **changes) == message


def test_a_missing_key_is_named_with_what_it_is(root: Path) -> None:
    path = write_yaml(study_file(root, "mine"), {"title": "x", **blocks()})
    with pytest.raises(StudyError) as caught:
        load_study(root, "mine")
    assert str(caught.value) == (
        f"{path}: prompts: is missing; expected: Prompts sampled from each data set, without replacement"
    )


def test_several_mistakes_stand_on_lines_of_their_own(root: Path) -> None:
    message = refusal(root, prompts=0, **blocks(batch=0))
    assert message.splitlines() == [
        "",
        "  prompts: found 0; expected at least 1",
        "  matrix.0.batch: found 0; expected at least 1",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: [a\nprompts: 3\n", r"mine\.yaml, line 2: no valid YAML: "),
        ("title: a\n\tprompts: 3\n", r"mine\.yaml, line 2: no valid YAML: found character '\\t'"),
        ("title: a: b\n", r"mine\.yaml, line 1: no valid YAML: mapping values are not allowed here"),
        ("title: a\nseed: 1\nseed: 2\n", r"mine\.yaml, line 3: no valid YAML: the key 'seed' stands twice"),
        ("matrix:\n- batch: 1\n  batch: 2\n", r"line 3: no valid YAML: the key 'batch' stands twice"),
        ("title: 2026-02-30\n", r"mine\.yaml: no valid YAML: day is out of range for month"),
        ("title: a\0b\n", r"mine\.yaml: no valid YAML: unacceptable character #x0000"),
        ("? [a]\n: b\n", r"mine\.yaml, line 1: no valid YAML: found unhashable key"),
        ("title: !!python/name:os.system x\n", r"line 1: no valid YAML: could not determine a constructor"),
        ("", r"mine\.yaml: is empty; expected keys and values"),
        ("# nothing yet\n", r"mine\.yaml: is empty"),
        ("- a\n- b\n", r"mine\.yaml: expected keys and values, found list"),
        ("just words\n", r"mine\.yaml: expected keys and values, found str"),
        ("1: a\n", r"mine\.yaml: "),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_with_its_line(root: Path, text: str, words: str) -> None:
    study_file(root, "mine").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=words) as caught:
        load_study(root, "mine")
    assert "\n" not in str(caught.value).partition(": \n")[0]


def test_a_file_in_another_encoding_is_refused(root: Path) -> None:
    study_file(root, "mine").write_bytes("title: Größe\n".encode("latin-1"))
    with pytest.raises(StudyError, match=r"mine\.yaml: is no UTF-8 text: byte 9 is not; save it as UTF-8"):
        load_study(root, "mine")


def test_a_study_that_is_a_folder_is_unknown(root: Path) -> None:
    study_file(root, "mine").mkdir()
    with pytest.raises(StudyError, match="unknown study 'mine'"):
        load_study(root, "mine")


def test_an_unknown_study_gets_a_suggestion_and_the_list(root: Path) -> None:
    for name in ("paper", "power-cap"):
        write_yaml(study_file(root, name), study_content())
    with pytest.raises(StudyError) as caught:
        load_study(root, "papr")
    assert str(caught.value) == (
        "unknown study 'papr'; did you mean 'paper'?; known: paper, power-cap "
        f"(a study is a file {root}/config/studies/NAME.yaml)"
    )
    assert study_names(root) == ["paper", "power-cap"]


@pytest.mark.parametrize("name", ["../demo", "Demo", "my study", "", "a/b"])
def test_a_name_that_could_not_be_part_of_a_path_names_no_study(root: Path, name: str) -> None:
    with pytest.raises(StudyError, match="cannot name a study; expected lower-case letters and digits"):
        load_study(root, name)
