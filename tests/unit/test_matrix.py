"""Guards the way from a study to its cells: crossing, excluding, fewest shards, and what is impossible."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwatt.architectures import CATALOGUE, Architecture
from shardwatt.cell import Cell
from shardwatt.checkpoints import Checkpoint
from shardwatt.engines import ENGINES, MODEL_ENGINES, simulated_counterpart
from shardwatt.errors import StudyError
from shardwatt.matrix import expand, expand_blocks, shard_counts
from shardwatt.models import recipe_file
from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.leftout import left_out
from shardwatt.plan.memory import memory_need
from shardwatt.site import Site
from shardwatt.study import Study, load_study
from shardwatt.tensornames import tensor_problems
from small_project import (
    BLOCK,
    GPUS,
    blocks,
    make_checkpoint,
    make_root,
    make_site,
    study_content,
    write_yaml,
)

PARAMS_7B = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "vocab_size": -1}
PARAMS_13B = {"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "vocab_size": -1}

#: 12 heads that share 4 KV heads: split over 1, 2, 4 or 12.
GROUPED = {
    "dim": 96,
    "multiple_of": 48,
    "n_heads": 12,
    "n_kv_heads": 4,
    "n_layers": 1,
    "vocab_size": 480,
}

#: What is said of a model of which nothing is known.
UNKNOWN = (
    "the shape of model 'mistral-7b-v0.2' is not known here; did you mean 'mistral-7b-v0.3'?; put its "
    "params.json or config.json into {site.models}/mistral-7b-v0.2, or its shape into "
    "{root}/config/architectures.yaml"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Site]:
    """A project, and a site with LLaMA 7B, 13B and 65B as Meta ships them, and one with few KV heads."""
    folder = tmp_path_factory.mktemp("place")
    root, models = make_root(folder / "project"), folder / "models"
    make_checkpoint(models / "llama-7b", 1, PARAMS_7B)
    make_checkpoint(models / "llama-13b", 2, PARAMS_13B)
    make_checkpoint(models / "llama-65b", 8)
    make_checkpoint(models / "grouped", 1, GROUPED)
    return root, make_site(folder)


def cells(place: tuple[Path, Site], **changes: Any) -> tuple[Cell, ...]:
    root, site = place
    return expand(root, "mine", Study(**study_content(**changes)), site)


def refusal(place: tuple[Path, Site], **changes: Any) -> str:
    """The message without the file's name, which it begins with."""
    with pytest.raises(StudyError) as caught:
        cells(place, **changes)
    file, _, message = str(caught.value).partition(": ")
    assert file == f"{place[0]}/config/studies/mine.yaml"
    return message


def test_a_block_is_a_cross_product_in_the_order_of_its_lists(place: tuple[Path, Site]) -> None:
    found = cells(place, **blocks(batch=[128, 64], length=[256, 512], dataset=["gsm8k", "alpaca"]))
    assert [(cell.batch, cell.length, cell.dataset) for cell in found] == list(
        product([128, 64], [256, 512], ["gsm8k", "alpaca"])
    )
    assert {cell.cap for cell in found} == {"none"}


def test_a_cell_in_several_blocks_counts_once_where_it_comes_first(place: tuple[Path, Site]) -> None:
    found = cells(place, matrix=[{**BLOCK, "batch": [64, 128]}, {**BLOCK, "batch": [256, 64]}])
    assert [cell.batch for cell in found] == [64, 128, 256]


def capped_site(place: tuple[Path, Site], **v100: Any) -> tuple[Path, Site]:
    """The same place with somebody who sets power limits, and some keys of its V100s replaced."""
    root, site = place
    gpus = {**GPUS, "v100": {**GPUS["v100"], **v100}}
    content = {"gpus": gpus, "models": str(site.models), "power_limits": {"set_by": "nvml"}}
    return root, make_site(root, **content)


def test_a_power_cap_that_nothing_would_set_is_refused(place: tuple[Path, Site]) -> None:
    """A record that only says 175 W would be false; a forecast, and results that are there, are not."""
    assert refusal(place, **blocks(cap=["none", 175])) == (
        "cap: 175 on v100: site 'testbed' sets no power limits; use `none`, or say in the site's key "
        "power_limits who sets them (docs/power-caps.md)"
    )
    assert len(cells(place, **blocks(cap=["none", 175]), exclude=[{"cap": 175}])) == 1
    root, site = place
    study = Study(**study_content(**blocks(cap=["none", 175])))
    planned = expand(root, "mine", study, site, with_models=False)
    assert [cell.cap_w for cell in planned] == [None, 175]
    forecaster = Forecaster(root, "mine", study, site)
    said = "site 'testbed' sets no power limits: "
    notes = ["".join(forecaster.cell(cell).notes) for cell in planned]
    assert [said in note for note in notes] == [False, True]


def test_an_impossible_cap_is_refused_in_the_plan_too(place: tuple[Path, Site]) -> None:
    root, site = place
    known = site.gpus["v100"].model_copy(update={"data_sheet": "v100-pcie-32gb"})
    study = Study(**study_content(**blocks(cap=2500)))
    with pytest.raises(StudyError, match="cap: 2500 on v100: "):
        expand(root, "mine", study, site.model_copy(update={"gpus": {"v100": known}}), with_models=False)


def test_power_caps_are_an_axis_where_the_site_sets_them(place: tuple[Path, Site]) -> None:
    found = cells(capped_site(place), **blocks(cap=[1, 175, "none"], repeat=[1, 2]))
    assert [(cell.cap_w, cell.repeat) for cell in found] == list(product([1, 175, None], [1, 2]))


def test_the_papers_study_of_power_caps_has_a_plan_where_limits_are_set(tmp_path: Path) -> None:
    """Caps on their own A100s, each three times: Table III of arXiv 2310.03003."""
    root = Path(__file__).parents[2]
    gpus = {"a100": {"kind": "cuda", "per_node": 4, "memory_gib": 80, "power_limits_w": [100, 400]}}
    site = make_site(tmp_path, gpus=gpus, power_limits={"set_by": "nvml"})
    found = expand(root, "power-cap", load_study(root, "power-cap"), site, with_models=False)
    assert [(cell.length, cell.cap, cell.repeat) for cell in found] == list(
        product((256, 512, 1024), ("250", "175", "150"), (1, 2, 3))
    )


@pytest.mark.parametrize(("cap", "is_in"), [(99, False), (100, True), (300, True), (301, False)])
def test_a_power_cap_outside_of_what_the_gpus_take_is_refused(
    place: tuple[Path, Site], cap: int, is_in: bool
) -> None:
    site = capped_site(place, power_limits_w=[100, 300])
    if is_in:
        assert cells(site, **blocks(cap=cap))[0].cap_w == cap
    else:
        assert refusal(site, **blocks(cap=cap)) == (
            f"cap: {cap} on v100: one GPU takes 100 to 300 W at site 'testbed' (its key "
            "gpus.v100.power_limits_w); use a cap within that"
        )


@pytest.mark.parametrize(("cap", "is_possible"), [(99, False), (100, True), (375, True), (376, False)])
def test_a_power_cap_that_no_such_board_takes_is_refused_where_the_site_says_no_more(
    place: tuple[Path, Site], cap: int, is_possible: bool
) -> None:
    """A slip of the pen, 2500 for 250; what the GPUs take exactly is for the site to say."""
    site = capped_site(place, data_sheet="v100-pcie-32gb")
    if is_possible:
        assert cells(site, **blocks(cap=cap))[0].cap_w == cap
    else:
        assert refusal(site, **blocks(cap=cap)) == (
            f"cap: {cap} on v100: a v100-pcie-32gb takes no limit below 100 W and is made for 250 W; use a "
            "cap between, or say in the site's key gpus.v100.power_limits_w what these GPUs take"
        )


def test_processors_have_no_power_limit_unless_gpus_beside_them_are_metered(
    place: tuple[Path, Site],
) -> None:
    assert refusal(capped_site(place, kind="cpu"), **blocks(cap=175)) == (
        "cap: 175 on v100: site 'testbed' has processors there, which have no power limit to set; use "
        "`none`, or a GPU type of kind `cuda`"
    )
    assert cells(capped_site(place, kind="cpu", meter="nvml"), **blocks(cap=175))


@settings(deadline=None)
@given(
    batches=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, unique=True),
    lengths=st.lists(st.sampled_from([32, 64, 128]), min_size=1, unique=True),
    data=st.data(),
)
def test_exclusion_leaves_out_what_matches_every_axis_of_an_entry_and_nothing_else(
    place: tuple[Path, Site], batches: list[int], lengths: list[int], data: st.DataObject
) -> None:
    out_batches = data.draw(st.lists(st.sampled_from(batches), min_size=1, unique=True))
    out_lengths = data.draw(st.lists(st.sampled_from(lengths), min_size=1, unique=True))
    changes = blocks(batch=batches, length=lengths)
    left = [
        pair for pair in product(batches, lengths) if not (pair[0] in out_batches and pair[1] in out_lengths)
    ]
    exclude = [{"batch": out_batches, "length": out_lengths}]
    if left:
        found = cells(place, **changes, exclude=exclude)
        assert [(cell.batch, cell.length) for cell in found] == left
    else:
        assert refusal(place, **changes, exclude=exclude) == "exclude leaves no cell; expected at least one"


def test_entries_of_exclude_work_apart_from_each_other(place: tuple[Path, Site]) -> None:
    found = cells(
        place,
        **blocks(batch=[64, 128, 256], repeat=[1, 2]),
        exclude=[{"batch": 64}, {"repeat": 1, "batch": [128, 256]}],
    )
    assert [(cell.batch, cell.repeat) for cell in found] == [(128, 2), (256, 2)]


@pytest.mark.parametrize("batch", [64, "64"])
def test_a_number_excludes_whether_or_not_it_is_quoted(place: tuple[Path, Site], batch: int | str) -> None:
    found = cells(place, **blocks(batch=[64, 128]), exclude=[{"batch": batch}])
    assert [cell.batch for cell in found] == [128]


def test_an_exclusion_that_could_match_nothing_is_a_misspelling(place: tuple[Path, Site]) -> None:
    message = refusal(place, exclude=[{"batch": 64, "dataset": "gms8k"}])
    assert message == (
        "exclude.0.dataset: found 'gms8k'; did you mean 'gsm8k'?; expected a value that a block has: gsm8k"
    )


def test_what_is_excluded_need_not_be_possible(place: tuple[Path, Site]) -> None:
    found = cells(place, **blocks(shards=[8, 5, 16]), exclude=[{"shards": [5, 16]}])
    assert [cell.shards for cell in found] == [8]
    with_minimum = blocks(gpu=["v100", "cpu"], shards="minimum")
    assert "shards: minimum: found gpu 'cpu'" in refusal(place, **with_minimum)
    assert [cell.gpu for cell in cells(place, **with_minimum, exclude=[{"gpu": "cpu"}])] == ["v100"]


@pytest.mark.parametrize(
    ("model", "gpu", "shards"),
    [
        ("llama-7b", "v100", 1),
        ("llama-7b", "a100", 1),
        ("llama-13b", "v100", 2),
        ("llama-13b", "a100", 1),
        ("llama-65b", "v100", 8),
        ("llama-65b", "a100", 4),
    ],
)
def test_minimum_is_the_bare_minimum_hardware_of_table_2(
    place: tuple[Path, Site], model: str, gpu: str, shards: int
) -> None:
    """Table II of arXiv 2310.03003: batch 64, maximum length 256."""
    minimum = blocks(model=model, gpu=gpu, shards="minimum")
    assert [cell.shards for cell in cells(place, **minimum, prompts=4096, cache_tokens=512)] == [shards]


def test_minimum_may_be_excluded_by_the_number_that_it_is(place: tuple[Path, Site]) -> None:
    both = blocks(gpu=["v100", "a100"], shards="minimum")
    found = cells(place, **both, prompts=4096, cache_tokens=512, exclude=[{"shards": 8}])
    assert [(cell.gpu, cell.shards) for cell in found] == [("a100", 4)]


def test_minimum_chooses_among_counts_that_fill_nodes(tmp_path: Path) -> None:
    """On one machine of six, LLaMA 13B splits over 1, 2, 4 or 5; of 16 GiB each, four are the fewest."""
    root = make_root(tmp_path / "project")
    make_checkpoint(tmp_path / "models" / "llama-13b", 2, PARAMS_13B)
    for per_node, shards in ((6, 4), (2, 2)):
        site = make_site(tmp_path, gpus={"a100": {**GPUS["a100"], "per_node": per_node, "memory_gib": 16}})
        block = blocks(model="llama-13b", gpu="a100", shards="minimum", batch=32)
        study = Study(**study_content(**block, prompts=4096, cache_tokens=512))
        (cell,) = expand(root, "mine", study, site)
        assert cell.shards == shards


def test_where_no_number_of_shards_fits_the_plan_leaves_out_the_largest(place: tuple[Path, Site]) -> None:
    """A model that is too large for one GPU type hides nothing of the others, and is never run."""
    root, site = capped_site(place, memory_gib=16)
    content = study_content(**blocks(gpu=["v100", "a100"], shards="minimum"), cache_tokens=512, unfit="run")
    study = Study(**{**content, "prompts": 4096})
    does_not, fits = expand(root, "mine", study, site)
    assert (does_not.gpu, does_not.shards) == ("v100", 8)
    assert (fits.gpu, fits.shards) == ("a100", 4)
    forecaster = Forecaster(root, "mine", study, site)
    assert left_out(forecaster, study, site, fits) is None
    found = left_out(forecaster, study, site, does_not)
    assert found is not None
    assert found.need.total_gib > found.memory_gib == 16


@pytest.mark.parametrize(
    ("axes", "word"),
    [({"shards": "minimum"}, "shards: minimum"), ({"shards": 1, "batch": "maximum"}, "batch: maximum")],
)
def test_minimum_and_maximum_are_of_gpus_alone(
    place: tuple[Path, Site], axes: dict[str, Any], word: str
) -> None:
    """Of processors nobody knows what fits: no number of theirs is a minimum or a maximum."""
    assert refusal(place, **blocks(gpu="cpu", **axes)) == (
        f"matrix.0.{word}: found gpu 'cpu' of kind `cpu`; whether a cell fits is not known of processors: "
        "write a number, in a block of their own if GPUs stand beside them"
    )


def test_a_batch_of_more_than_all_prompts_needs_what_all_prompts_do(place: tuple[Path, Site]) -> None:
    block = blocks(gpu="a100", shards="minimum", batch=[8, 512])
    assert [cell.shards for cell in cells(place, **block, prompts=8, cache_tokens=512)] == [2, 2]
    assert [cell.shards for cell in cells(place, **block, prompts=512, cache_tokens=512)] == [2, 8]


@settings(deadline=None, max_examples=50)
@given(
    model=st.sampled_from(sorted(CATALOGUE)),
    engine=st.sampled_from(sorted(set(ENGINES) - MODEL_ENGINES.keys())),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    number=st.integers(1, 600),
    length=st.integers(1, 2048),
    memory_gib=st.floats(1, 200),
)
def test_minimum_and_maximum_fit_and_the_next_number_does_not(
    place: tuple[Path, Site],
    model: str,
    engine: str,
    precision: str,
    number: int,
    length: int,
    memory_gib: float,
) -> None:
    def fits(shards: int, batch: int) -> bool:
        need = memory_need(
            shape, precision=precision, shards=shards, batch=batch, length=length, engine=engine
        )
        return need.total_gib <= memory_gib

    shape = CATALOGUE[model]
    axes = {"engine": engine, "model": model, "precision": precision, "gpu": "v100", "length": length}
    wide = capped_site(place, memory_gib=memory_gib, per_node=1024)
    (fewest,) = cells(wide, **blocks(**axes, shards="minimum", batch=number), prompts=600)
    counts = shard_counts(engine, shape)
    assert fewest.shards == next((n for n in counts if fits(n, number)), counts[-1])
    (largest,) = cells(wide, **blocks(**axes, shards=1, batch="maximum"), prompts=number)
    powers = [2**exponent for exponent in range(10) if 2**exponent <= number]
    assert largest.batch == max((n for n in powers if fits(1, n)), default=1)


@pytest.mark.parametrize(
    ("axes", "where"),
    [
        ({"shards": "minimum"}, "matrix.0.shards: minimum: "),
        ({"batch": "maximum"}, "matrix.0.batch: maximum: "),
    ],
)
def test_minimum_and_maximum_need_the_models_shape(
    place: tuple[Path, Site], axes: dict[str, str], where: str
) -> None:
    root, site = place
    study = Study(**study_content(**blocks(model="mistral-7b-v0.2", **axes)))
    with pytest.raises(StudyError) as caught:
        expand(root, "mine", study, site, with_models=False)
    assert str(caught.value).endswith(f": {where}{UNKNOWN.format(root=root, site=site)}, or write a number")


def test_simulated_engines_need_the_models_shape(place: tuple[Path, Site]) -> None:
    root, site = place
    message = refusal(place, **blocks(engine="simulated", model="mistral-7b-v0.2"))
    assert message == f"engine simulated: {UNKNOWN.format(root=root, site=site)}"


def test_maximum_is_the_largest_batch_of_table_2(place: tuple[Path, Site]) -> None:
    """Table II of arXiv 2310.03003 at its minimum hardware, of batches of 64 and more."""
    found = cells(
        place,
        prompts=4096,
        cache_tokens=512,
        matrix=[
            {**BLOCK, "model": "llama-7b", "shards": 1, "batch": "maximum"},
            {**BLOCK, "model": "llama-13b", "shards": 2, "batch": "maximum"},
            {**BLOCK, "gpu": ["v100", "a100"], "shards": [4, 8], "batch": "maximum"},
        ],
        exclude=[{"model": "llama-65b", "gpu": "v100", "shards": 4}, {"gpu": "a100", "shards": 8}],
    )
    assert [(cell.gpu, cell.shards, cell.batch) for cell in found] == [
        ("v100", 1, 64), ("v100", 2, 64), ("v100", 8, 64), ("a100", 4, 128),
    ]  # fmt: skip


def test_maximum_is_a_power_of_two_within_the_studys_prompts(place: tuple[Path, Site]) -> None:
    small = blocks(model="llama-7b", gpu="a100", shards=1, batch="maximum", length=[16, 256])
    assert [cell.batch for cell in cells(place, **small, prompts=24)] == [16, 16]
    assert [cell.batch for cell in cells(place, **small, prompts=4096)] == [256, 128]


def test_where_shards_and_batch_are_open_one_prompt_decides_over_the_shards(place: tuple[Path, Site]) -> None:
    both = blocks(gpu="a100", shards="minimum", batch="maximum")
    (found,) = cells(place, **both, prompts=4096, cache_tokens=512)
    assert (found.shards, found.batch) == (2, 16)
    (beside,) = cells(place, **blocks(gpu="a100", shards="minimum", batch=64), prompts=4096, cache_tokens=512)
    assert beside.shards == 4


def test_where_not_one_prompt_fits_the_plan_leaves_out_a_batch_of_one(place: tuple[Path, Site]) -> None:
    """As with shards: what was asked for and does not fit stands in the plan, and is never run."""
    root, site = place
    keys: dict[str, Any] = {"prompts": 4096, "cache_tokens": 2048, "unfit": "run"}
    study = Study(**study_content(**blocks(shards=[4, 8], batch="maximum"), **keys))
    does_not, fits = expand(root, "mine", study, site)
    assert (does_not.shards, does_not.batch) == (4, 1)
    assert fits.shards == 8
    forecaster = Forecaster(root, "mine", study, site)
    assert left_out(forecaster, study, site, fits) is None
    found = left_out(forecaster, study, site, does_not)
    assert found is not None
    assert found.need.total_gib > found.memory_gib == 32
    assert cells(place, **blocks(shards=4, batch="maximum"), **keys) == (does_not,)
    without = cells(
        place, **blocks(shards=[4, 8], batch="maximum"), **keys, exclude=[{"shards": 4, "batch": 1}]
    )
    assert without == (fits,)


def test_maximum_may_be_excluded_by_the_number_that_it_is(place: tuple[Path, Site]) -> None:
    both = blocks(gpu=["v100", "a100"], shards=8, batch="maximum")
    found = cells(place, **both, prompts=4096, cache_tokens=512, exclude=[{"batch": 64}])
    assert [(cell.gpu, cell.batch) for cell in found] == [("a100", 256)]


def test_a_wrong_number_of_shards_is_told_before_the_batch_that_would_fit(place: tuple[Path, Site]) -> None:
    assert refusal(place, **blocks(shards=3, batch="maximum")).startswith("shards: 3 does not divide ")


def test_a_matrix_of_a_million_cells_is_refused_with_their_number(place: tuple[Path, Site]) -> None:
    """Before it is written out, which would take minutes and gigabytes."""
    many = blocks(batch=[*range(1, 1001)], repeat=[*range(1, 1001)])
    assert refusal(place, **many) == (
        "matrix: found 1,000,000 cells, exclusions and doubles counted; expected at most 100,000: take "
        "values out, or raise the limit, max_cells: 1000000"
    )


def test_the_limit_of_cells_can_be_raised_and_lowered(place: tuple[Path, Site]) -> None:
    two_blocks = {"matrix": [{**BLOCK, "repeat": [1, 2]}, {**BLOCK, "repeat": [2, 3]}]}
    assert refusal(place, **two_blocks, max_cells=3).startswith("matrix: found 4 cells, ")
    assert len(cells(place, **two_blocks, max_cells=4)) == 3


def test_the_cells_of_each_block_are_told_apart(place: tuple[Path, Site]) -> None:
    root, site = place
    matrix = [{**BLOCK, "repeat": [1, 2]}, {**BLOCK, "repeat": [2, 3]}, {**BLOCK, "repeat": [9]}]
    study = Study(**study_content(matrix=matrix, exclude=[{"repeat": 9}]))
    found = expand_blocks(root, "mine", study, site)
    assert [[cell.repeat for cell in block] for block in found] == [[1, 2], [2, 3], []]


def test_simulated_engines_need_no_checkpoint(place: tuple[Path, Site]) -> None:
    found = cells(place, **blocks(engine=["simulated", "simulated-fast"], model="llama-30b", shards=4))
    assert [cell.engine for cell in found] == ["simulated", "simulated-fast"]
    with pytest.raises(StudyError, match="no checkpoint of model 'llama-30b'"):
        cells(place, **blocks(model="llama-30b", shards=4))


@pytest.mark.parametrize("engine", sorted(MODEL_ENGINES))
def test_a_simulated_engine_splits_and_fits_as_the_one_it_stands_for(
    place: tuple[Path, Site], engine: str
) -> None:
    open_ = {"model": "llama-7b", "gpu": "a100", "shards": "minimum", "batch": [64, "maximum"]}
    real = cells(place, **blocks(engine=engine, **open_), prompts=4096)
    simulated = cells(place, **blocks(engine=simulated_counterpart(engine), **open_), prompts=4096)
    assert [(cell.shards, cell.batch) for cell in real] == [(cell.shards, cell.batch) for cell in simulated]


def test_shapes_of_the_users_own_are_planned_with(place: tuple[Path, Site], tmp_path: Path) -> None:
    root = make_root(tmp_path / "project")
    shape = {"dim": 4096, "n_layers": 40, "n_heads": 32, "hidden_dim": 14_336, "vocab_size": 64_000}
    write_yaml(root / "config" / "architectures.yaml", {"architectures": {"my-9b": shape}})
    own = root, place[1]
    found = cells(own, **blocks(engine="simulated", model="my-9b", gpu="a100", shards="minimum"))
    assert [cell.shards for cell in found] == [1]
    message = refusal(own, **blocks(engine="simulated", model="my-8b"))
    assert message.startswith("engine simulated: the shape of model 'my-8b' is not known here; did you mean "
                              "'my-9b'?")  # fmt: skip


def test_results_of_simulated_cells_can_be_read_where_no_shape_is_known(place: tuple[Path, Site]) -> None:
    root, site = place
    study = Study(**study_content(**blocks(engine="simulated", model="lost")))
    assert len(expand(root, "mine", study, site, with_models=False)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"engine": "referense"},
            "matrix.0.engine: found 'referense'; did you mean 'reference'?; allowed:\n  reference: the publ",
        ),
        (
            {"gpu": "v10"},
            "matrix.0.gpu: found 'v10'; did you mean 'v100'?; allowed: v100, a100, cpu (site 'testbed'); "
            "for another site pass --site FILE, or set SHARDWATT_SITE; Snakemake takes it with its --profile",
        ),
        ({"dataset": "gsm"}, "matrix.0.dataset: found 'gsm'; did you mean 'gsm8k'?; allowed: alpaca, gsm8k"),
        ({"model": "lama-65b"}, "unknown model 'lama-65b'; did you mean 'llama-65b'?; "),
        ({"shards": 16}, "shards: 16 needs 2 nodes of 8 v100, and launcher `local` has one; use up to 8"),
    ],
)
def test_a_value_that_the_place_does_not_have_is_refused(
    place: tuple[Path, Site], changes: dict[str, Any], message: str
) -> None:
    assert refusal(place, **blocks(**changes)).startswith(message)


def test_shards_that_do_not_divide_the_heads_are_refused_with_those_that_do(
    place: tuple[Path, Site],
) -> None:
    message = refusal(place, **blocks(shards=12))
    assert message.startswith("shards: 12 does not divide llama-65b's 64 heads")
    assert message.endswith("; use 1, 2, 4, 8, 16, 32 or 64")


@pytest.mark.parametrize("shards", [1, 2, 4, 8])
def test_a_checkpoint_that_ships_in_eight_shards_runs_in_any_number(
    place: tuple[Path, Site], shards: int
) -> None:
    assert [cell.shards for cell in cells(place, **blocks(shards=shards))] == [shards]


def test_above_the_kv_heads_only_counts_that_replicate_them_evenly_are_allowed(
    place: tuple[Path, Site],
) -> None:
    root, site = place
    wide = site.model_copy(update={"gpus": {"v100": site.gpus["v100"].model_copy(update={"per_node": 16})}})
    found = cells((root, wide), **blocks(model="grouped", shards=[1, 2, 4, 12]))
    assert [cell.shards for cell in found] == [1, 2, 4, 12]
    for shards in (3, 6):
        assert refusal((root, wide), **blocks(model="grouped", shards=shards)) == (
            f"shards: {shards} does not fit grouped's 4 KV heads, which are split evenly, or above their "
            "number replicated evenly; use 1, 2, 4 or 12"
        )
    assert refusal((root, wide), **blocks(model="grouped", shards=5)).startswith(
        "shards: 5 does not divide grouped's 12 heads, "
    )


def test_the_engine_of_transformers_replicates_no_kv_heads(place: tuple[Path, Site]) -> None:
    root, site = place
    wide = site.model_copy(update={"gpus": {"v100": site.gpus["v100"].model_copy(update={"per_node": 16})}})
    assert cells((root, wide), **blocks(engine="hf", model="grouped", shards=4))
    assert refusal((root, wide), **blocks(engine="hf", model="grouped", shards=12)) == (
        "shards: 12 does not divide grouped's 4 KV heads, and engine hf replicates none; use 1, 2 or 4, or "
        "another engine"
    )
    assert refusal((root, wide), **blocks(engine="hf", model="grouped", shards=5)).endswith("; use 1, 2 or 4")


def test_all_engines_are_listed_with_what_they_are(place: tuple[Path, Site]) -> None:
    lines = refusal(place, **blocks(engine="fats")).splitlines()
    assert lines[0] == "matrix.0.engine: found 'fats'; did you mean 'fast'?; allowed:"
    assert lines[1:] == [f"  {name}: {facts.about}" for name, facts in ENGINES.items()]


def test_minimum_counts_the_engines_own_workspace(place: tuple[Path, Site]) -> None:
    """On a GPU between the two needs: fast makes no matrix of attention scores."""
    root, site = place
    study = blocks(model="llama-7b", gpu="a100", shards="minimum", batch=128, length=256)
    memory = {
        engine: memory_need(
            CATALOGUE["llama-7b"],
            precision="fp16",
            shards=1,
            batch=128,
            length=256,
            cache_tokens=512,
            engine=engine,
        ).total_gib
        for engine in ("reference", "fast")
    }
    assert memory["fast"] < memory["reference"]
    between = (memory["fast"] + memory["reference"]) / 2
    tight = {"a100": site.gpus["a100"].model_copy(update={"memory_gib": between})}
    place = root, site.model_copy(update={"gpus": tight})
    study["matrix"][0]["engine"] = ["reference", "fast"]
    found = cells(place, **study, prompts=4096, cache_tokens=512)
    assert [(cell.engine, cell.shards) for cell in found] == [("reference", 2), ("fast", 1)]


@pytest.mark.parametrize("capability", ["7.0", "7.5"])
def test_bf16_is_refused_by_name_where_gpus_do_not_calculate_in_it(
    place: tuple[Path, Site], capability: str
) -> None:
    old = capped_site(place, compute_capability=capability)
    assert refusal(old, **blocks(precision=["fp16", "bf16"])) == (
        f"precision: bf16 on v100: these GPUs have compute capability {capability} at site 'testbed', and "
        "bfloat16 arithmetic needs 8.0; use fp16 or fp32"
    )
    assert len(cells(old, **blocks(precision=["fp16", "bf16"]), exclude=[{"precision": "bf16"}])) == 1


@pytest.mark.parametrize(
    "v100",
    [
        {"compute_capability": "8.0"},
        {"compute_capability": "12.0"},
        {},
        {"compute_capability": "7.0", "kind": "cpu"},
    ],
)
def test_bf16_is_planned_where_nothing_speaks_against_it(
    place: tuple[Path, Site], v100: dict[str, str]
) -> None:
    assert cells(capped_site(place, **v100), **blocks(precision="bf16"))


def test_every_block_is_checked(place: tuple[Path, Site]) -> None:
    message = refusal(place, matrix=[BLOCK, {**BLOCK, "gpu": "h100"}])
    assert message.startswith("matrix.1.gpu: found 'h100'; ")


def test_a_wrong_recipe_or_params_json_is_told_of_the_study(place: tuple[Path, Site], tmp_path: Path) -> None:
    root = make_root(tmp_path / "project")
    write_yaml(recipe_file(root, "tiny"), {"about": "no size"})
    with pytest.raises(StudyError, match=r"mine\.yaml: model 'tiny': .*tiny\.yaml: \n  dim: is missing"):
        cells((root, place[1]), **blocks(model="tiny"))


@pytest.mark.parametrize("kept", [4, 7])
def test_last_shards_that_are_missing_are_refused_in_the_plan(tmp_path: Path, kept: int) -> None:
    """Four of eight are a number of shards as well: only what lies in the files tells of the others."""
    root = make_root(tmp_path / "project")
    folder = make_checkpoint(tmp_path / "models" / "llama-65b", 8)
    for rank in range(kept, 8):
        (folder / f"consolidated.{rank:02d}.pth").unlink()
    place = root, make_site(tmp_path)
    assert refusal(place) == (
        f"model 'llama-65b': {folder}: found {kept} files of weights, and the shapes in consolidated.00.pth "
        "are those of one of 8; the download is not complete: fetch what is missing"
    )
    assert len(expand(root, "mine", Study(**study_content()), place[1], with_models=False)) == 1


def test_a_file_that_is_cut_is_refused_in_the_plan(tmp_path: Path) -> None:
    root = make_root(tmp_path / "project")
    folder = make_checkpoint(tmp_path / "models" / "llama-65b", 8)
    for rank in (3, 5):
        path = folder / f"consolidated.{rank:02d}.pth"
        path.write_bytes(path.read_bytes()[:1000])
    message = refusal((root, make_site(tmp_path)))
    assert message.startswith(f"model 'llama-65b': {folder / 'consolidated.03.pth'}: ")
    assert message.endswith("; `shardwatt model inspect llama-65b` tells 1 more")


def test_a_checkpoint_is_looked_at_once_however_many_cells_read_it(
    place: tuple[Path, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []

    def look(checkpoint: Checkpoint, architecture: Architecture | None) -> list[str]:
        looked.append(checkpoint.folder)
        return tensor_problems(checkpoint, architecture)

    monkeypatch.setattr("shardwatt.matrix.tensor_problems", look)
    engines = ["reference", "fast", "fast-drop"]
    found = cells(place, **blocks(engine=engines, shards=[4, 8], batch=[1, 2, 4], repeat=[*range(1, 6)]))
    assert len(found) == 90
    assert looked == [place[1].models / "llama-65b"]


def test_results_can_be_read_where_the_models_are_not(place: tuple[Path, Site], tmp_path: Path) -> None:
    root, site = place
    elsewhere = site.model_copy(update={"models": tmp_path / "no models here"})
    study = Study(**study_content())
    with pytest.raises(StudyError, match="no checkpoint of model"):
        expand(root, "mine", study, elsewhere)
    without = expand(root, "mine", study, elsewhere, with_models=False)
    assert without == expand(root, "mine", study, site)
