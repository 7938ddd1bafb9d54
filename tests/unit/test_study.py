"""Guards study files: what they mean, and one clear message for each mistake that a user can make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.cell import AXES, Cell
from shardwatt.errors import StudyError
from shardwatt.study import Block, Constants, Study, load_study, study_file, study_names
from small_project import BLOCK, blocks, make_root, study_content, write_yaml


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
            "cool_down_max_s, cuda_graphs, energy, exclude, idle_read_s, idle_settle_s, matrix, max_cells, "
            "prompts, rehearses, seed, simulated_window_s, temperature, title, top_p, unfit, warmup_tokens",
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
            "length, model, name, precision, repeat, shards, unfit",
        ),
        (blocks(model=[]), "matrix.0.model: found []; expected at least one entry"),
        (
            blocks(model=7),
            "matrix.0.model: found 7; expected text; put it in quotes if it is meant so",
        ),
        (
            blocks(model="../llama"),
            "matrix.0.model: found '../llama'; expected lower-case letters and digits, "
            "with single . _ - between them; did you mean 'llama'?",
        ),
        (
            blocks(model="meta-llama/Llama-3.1-8B"),
            "matrix.0.model: found 'meta-llama/Llama-3.1-8B'; expected lower-case letters and digits, "
            "with single . _ - between them; did you mean 'llama-3.1-8b'?",
        ),
        (
            blocks(model="llama 3"),
            "matrix.0.model: found 'llama 3'; expected lower-case letters and digits, "
            "with single . _ - between them",
        ),
        (
            blocks(dataset=["gsm8k", "Alpaca"]),
            "matrix.0.dataset.1: found 'Alpaca'; expected lower-case letters and digits, "
            "with single . _ - between them; did you mean 'alpaca'?",
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
        (blocks(length=[4, "x"]), "matrix.0.length.1: found 'x'; expected a whole number"),
        (blocks(batch=[8, 4, 8]), "matrix.0.batch: 8 stands 2 times; expected each value once"),
        (
            blocks(dataset=["gsm8k", "gsm8k"]),
            "matrix.0.dataset: 'gsm8k' stands 2 times; expected each value once",
        ),
        (
            blocks(batch=0),
            "matrix.0.batch: found 0; expected a whole number from 1 to 999999, or 'maximum'",
        ),
        (
            blocks(batch=[64, "maximun"]),
            "matrix.0.batch.1: found 'maximun'; expected a whole number from 1 to 999999, or 'maximum'; "
            "did you mean 'maximum'?",
        ),
        (
            {"unfit": "leave-put"},
            "unfit: found 'leave-put'; did you mean 'leave-out'?; expected 'leave-out' or 'run'",
        ),
        (blocks(unfit=True), "matrix.0.unfit: found true; expected 'leave-out' or 'run'"),
        ({"simulated_window_s": 0}, "simulated_window_s: found 0; expected more than 0"),
        ({"max_cells": 0}, "max_cells: found 0; expected at least 1"),
        ({"max_cells": "all"}, "max_cells: found 'all'; expected a whole number"),
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
    message = refusal(root, prompts=0, **blocks(length=0))
    assert message.splitlines() == [
        "",
        "  prompts: found 0; expected at least 1",
        "  matrix.0.length: found 0; expected at least 1",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: [a\nprompts: 3\n", r"mine\.yaml, line 2: no valid YAML: "),
        ("title: a\n\tprompts: 3\n", r"mine\.yaml, line 2: no valid YAML: found (a tab )?character"),
        ("title: a: b\n", r"mine\.yaml, line 1: no valid YAML: mapping values are not allowed"),
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


def test_a_study_in_upper_case_gets_a_suggestion(root: Path) -> None:
    write_yaml(study_file(root, "paper"), study_content())
    with pytest.raises(
        StudyError, match="'Paper' cannot name a study; did you mean 'paper'\\?; expected lower"
    ):
        load_study(root, "Paper")


@pytest.mark.parametrize("name", ["../demo", "Demo", "my study", "", "a/b"])
def test_a_name_that_could_not_be_part_of_a_path_names_no_study(root: Path, name: str) -> None:
    with pytest.raises(StudyError, match="cannot name a study; expected lower-case letters and digits"):
        load_study(root, name)


def test_what_is_no_constant_does_not_outdate_finished_cells(root: Path) -> None:
    hash_ = load(root).constants.hash
    changed = load(root, unfit="run", simulated_window_s=9.0, max_cells=1, **blocks(batch="maximum"))
    assert changed.constants.hash == hash_
    write_yaml(study_file(root, "dress"), {"title": "Dress rehearsal", "rehearses": "mine"})
    assert load_study(root, "dress").constants.hash == hash_


#: A study to rehearse: two engines, one excluded somewhere, constants that are not the defaults.
PLAYED = {
    "prompts": 100,
    "seed": 7,
    "cache_tokens": 512,
    "idle_read_s": 0.0,
    "energy": "measured",
    "max_cells": 5,
    **blocks(engine=["reference", "fast"], shards="minimum", batch=[64, "maximum"]),
    "exclude": [{"engine": "fast", "batch": 64}],
}


def rehearsal(root: Path, **keys: Any) -> Study:
    write_yaml(study_file(root, "played"), study_content(**PLAYED))
    write_yaml(study_file(root, "dress"), {"title": "Dress rehearsal", "rehearses": "played", **keys})
    return load_study(root, "dress")


def test_a_rehearsal_has_the_cells_and_constants_of_its_study_with_every_engine_simulated(root: Path) -> None:
    played, found = load(root, **PLAYED), rehearsal(root)
    assert found.title == "Dress rehearsal"
    assert found.rehearses == "played"
    assert found.constants == played.constants
    assert found.max_cells == 5
    assert found.matrix[0].engine == ["simulated", "simulated-fast"]
    assert found.matrix[0].model_copy(update={"engine": ["reference", "fast"]}) == played.matrix[0]
    assert found.exclude == [{"engine": ["simulated-fast"], "batch": [64]}]


def test_a_rehearsal_takes_what_becomes_of_unfit_cells_but_no_demand_for_measured_energy(root: Path) -> None:
    write_yaml(study_file(root, "strict"), study_content(energy="measured", unfit="run"))
    write_yaml(study_file(root, "dress"), {"title": "Dress rehearsal", "rehearses": "strict"})
    found = load_study(root, "dress")
    assert (found.energy, found.unfit) == ("any", "run")
    write_yaml(study_file(root, "dress"), {"title": "Dress", "rehearses": "strict", "unfit": "leave-out"})
    assert load_study(root, "dress").unfit == "leave-out"


def test_what_a_rehearsal_says_itself_goes_before(root: Path) -> None:
    found = rehearsal(root, seed=8, unfit="run", simulated_window_s=0.5, max_cells=9)
    assert (found.seed, found.prompts, found.unfit) == (8, 100, "run")
    assert (found.simulated_window_s, found.max_cells) == (0.5, 9)


def test_a_rehearsal_of_a_slice_takes_no_exclusions_that_may_match_nothing_there(root: Path) -> None:
    found = rehearsal(root, **blocks(engine=["fast", "simulated-fast", "hf"]))
    assert found.matrix[0].engine == ["simulated-fast", "simulated-hf"]
    assert found.exclude == []
    assert found.prompts == 100


def test_an_engine_that_is_not_known_stays_to_be_told_of(root: Path) -> None:
    assert rehearsal(root, **blocks(engine="fats")).matrix[0].engine == ["fats"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rehearses": "plaid"}, "rehearses: unknown study 'plaid'; did you mean 'played'?; known: "),
        ({"rehearses": "../x"}, "rehearses: found '../x'; expected the name of a study: lower-case"),
        ({"rehearses": 3}, "rehearses: found 3; expected the name of a study: "),
        (
            {"rehearses": "dress"},
            "rehearses: 'dress' is a rehearsal itself; expected a study with a matrix to run",
        ),
        ({"rehearses": "played", "seed": -1}, "seed: found -1; expected at least 0"),
        ({"rehearses": "played", "matrix": []}, "matrix: found []; expected at least one entry"),
    ],
)
def test_a_mistake_in_a_rehearsal_is_told_of_its_own_file(
    root: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(StudyError) as caught:
        rehearsal(root, **keys)
    assert str(caught.value).startswith(f"{study_file(root, 'dress')}: {message}")
    assert "\n" not in str(caught.value), "one mistake is told once"


def test_a_mistake_in_the_study_that_is_rehearsed_is_told_of_that_file(root: Path) -> None:
    write_yaml(study_file(root, "wrong"), study_content(prompts=0))
    with pytest.raises(StudyError) as caught:
        rehearsal(root, rehearses="wrong")
    assert str(caught.value) == f"{study_file(root, 'wrong')}: prompts: found 0; expected at least 1"


def test_two_studies_that_rehearse_each_other_are_refused(root: Path) -> None:
    write_yaml(study_file(root, "other"), {"title": "Other", "rehearses": "dress"})
    with pytest.raises(StudyError, match="'other' is a rehearsal itself"):
        rehearsal(root, rehearses="other")


def cell(**axes: Any) -> Cell:
    """A cell of the one block that small studies have."""
    values = {"engine": "reference", "precision": "fp16", "cap": "none", "repeat": 1, **BLOCK, **axes}
    return Cell(**{axis: values[axis] for axis in AXES})


@pytest.mark.parametrize(
    ("study", "of_block", "runs"),
    [
        ("leave-out", None, False),
        ("run", None, True),
        ("run", "leave-out", False),
        ("leave-out", "run", True),
    ],
)
def test_a_blocks_word_on_unfit_cells_goes_before_the_studys(
    root: Path, study: str, of_block: str | None, runs: bool
) -> None:
    found = load(root, unfit=study, **blocks(batch=[64, 128], cap=[250, "none"], unfit=of_block))
    assert found.runs_unfit(cell(batch=128, cap="250")) is runs
    assert not found.runs_unfit(cell(batch=256)), "no block has it"


def test_a_cell_of_several_blocks_runs_unfit_if_one_of_them_runs_it(root: Path) -> None:
    matrix = [
        {**BLOCK, "unfit": "leave-out", "batch": [64, 128, 256]},
        {**BLOCK, "batch": [128, 512]},
    ]
    found = load(root, matrix=matrix, unfit="run")
    batches = [batch for batch in (64, 128, 256, 512) if found.runs_unfit(cell(batch=batch))]
    assert batches == [128, 512]


def test_words_of_a_block_stand_for_no_number_that_does_not_fit(root: Path) -> None:
    found = load(root, unfit="run", **blocks(shards=["minimum", 2], batch=["maximum", 64]))
    assert found.runs_unfit(cell(shards=2, batch=64))
    assert not found.runs_unfit(cell(shards=1, batch=64))
    assert not found.runs_unfit(cell(shards=2, batch=128))


def test_many_values_of_an_axis_are_read_at_once() -> None:
    """Comparing each value with all others takes minutes for a list that a program wrote."""
    assert len(Block(**{**BLOCK, "repeat": [*range(1, 100_001)]}).repeat) == 100_000
