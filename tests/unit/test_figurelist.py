"""Which figures a study has."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

from shardwatt.figurelist import FIGURE_PATTERN, FigureSpec, Kind, figures
from shardwatt.matrix import expand
from shardwatt.site import load_site
from shardwatt.study import load_study
from synthetic_cells import make_cell

ROOT = Path(__file__).parents[2]


def _names(specs: list[FigureSpec]) -> list[str]:
    return [spec.name for spec in specs]


def test_every_model_gpu_and_length_has_its_three_figures_beside_the_two_comparisons() -> None:
    cells = [make_cell(length=length, batch=batch) for length, batch in product([256, 512], [4, 8])]
    assert _names(figures(cells)) == [
        "throughput",
        "power",
        "power-by-shards--llama-7b--v100--length-256",
        "power-by-shards--llama-7b--v100--length-512",
        "energy-per-token--llama-7b--v100--length-256",
        "energy-per-token--llama-7b--v100--length-512",
        "energy-per-response--llama-7b--v100--length-256",
        "energy-per-response--llama-7b--v100--length-512",
        "ratios",
    ]


def test_processors_alone_have_no_ratios_and_a_study_has_them_once() -> None:
    cells = [make_cell(gpu=gpu, cap=cap) for gpu in ("cpu", "v100") for cap in ("none", "150")]
    assert _names(figures(cells)).count("ratios") == 1
    assert "ratios" not in _names(figures(cells[:2]))
    (ratios,) = (spec for spec in figures(cells) if spec.kind is Kind.RATIOS)
    assert all(ratios.holds(cell) for cell in cells)
    assert (ratios.title, ratios.conditions) == (
        "Two accountings of the same energy",
        "every cell of the study that has them",
    )


def test_engines_have_a_figure_where_a_study_has_several_for_the_same_model_gpu_and_length() -> None:
    alone = [make_cell(engine="reference"), make_cell(engine="fast", model="other")]
    assert not [name for name in _names(figures(alone)) if name.startswith("engines")]
    cells = [make_cell(engine=engine, batch=batch) for engine in ("reference", "fast") for batch in (4, 8)]
    cells += [make_cell(engine="fast", length=512)]
    (spec,) = (spec for spec in figures(cells) if spec.kind is Kind.ENGINES)
    assert spec.name == "engines--llama-7b--v100--length-256"
    assert [spec.holds(cell) for cell in cells] == [True] * 4 + [False]
    assert (spec.title, spec.conditions) == (
        "Engines side by side: llama-7b on v100",
        "at most 256 new tokens, fp16, no power cap",
    )


def test_figures_of_a_single_mark_are_left_out_where_engines_are_compared() -> None:
    cells = [
        make_cell(engine=engine, gpu="cpu", dataset=data) for engine in ("a", "b") for data in ("x", "y")
    ]
    assert _names(figures(cells)) == ["engines--llama-7b--cpu--length-256"]
    assert len(figures(cells[:2])) == 5, "one engine has them all"
    by_batch = _names(figures([*cells, make_cell(engine="a", gpu="cpu", batch=8)]))
    assert "power-by-shards--llama-7b--cpu--length-256--a" in by_batch
    assert "power-by-shards--llama-7b--cpu--length-256--b" not in by_batch
    by_model = _names(figures([*cells, make_cell(engine="a", gpu="cpu", model="other")]))
    assert [name for name in by_model if name.startswith("throughput")] == ["throughput--a"]


def test_engines_are_compared_within_a_precision_and_a_cap() -> None:
    axes = product(["reference", "fast"], ["fp16", "fp32"], ["none", "150"])
    cells = [make_cell(engine=engine, precision=precision, cap=cap) for engine, precision, cap in axes]
    names = [name for name in _names(figures(cells)) if name.startswith("engines")]
    start = "engines--llama-7b--v100--length-256"
    assert sorted(names) == sorted(
        f"{start}--{precision}--cap-{cap}" for precision in ("fp16", "fp32") for cap in ("none", "150")
    )
    assert all(re.fullmatch(FIGURE_PATTERN, name) for name in names)


def test_order_of_cells_does_not_change_the_list() -> None:
    cells = [make_cell(model=model, gpu=gpu) for model, gpu in product(["b", "a"], ["v100", "a100"])]
    assert figures(cells) == figures(list(reversed(cells)))


def test_axes_that_the_study_varies_enter_the_name_and_others_do_not() -> None:
    specs = figures([make_cell(cap=cap) for cap in ("250", "150")])
    assert {"throughput--cap-150", "throughput--cap-250"} <= set(_names(specs))
    assert all("fp16" not in name and "reference" not in name for name in _names(specs))
    both = figures([make_cell(precision="fp16"), make_cell(precision="bf16")])
    assert "energy-per-token--llama-7b--v100--length-256--bf16" in _names(both)


def test_names_are_unique_even_where_axis_values_hold_dots_and_hyphens() -> None:
    cells = [
        make_cell(model="a.b", gpu="c"),
        make_cell(model="a", gpu="b.c"),
        make_cell(model="a-b", gpu="c"),
    ]
    names = _names(figures(cells))
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(FIGURE_PATTERN, name) for name in names)


def test_comparisons_take_the_point_nearest_the_papers_that_most_pairs_have() -> None:
    cells = [make_cell(batch=batch, length=length) for batch, length in product([32, 64, 128], [128, 256])]
    cells += [make_cell(model="llama-13b", batch=32, length=128)]
    (throughput,) = (spec for spec in figures(cells) if spec.kind is Kind.THROUGHPUT)
    assert dict(throughput.fixed)["batch"] == 32, "64 is nearer, but 13b has 32 alone"
    assert "batch 32, at most 128 new tokens" in throughput.conditions


def test_a_spec_holds_its_own_cells_alone() -> None:
    cells = [make_cell(length=256), make_cell(length=512)]
    spec = next(s for s in figures(cells) if s.name.endswith("length-512"))
    assert [spec.holds(cell) for cell in cells] == [False, True]


def test_importing_the_list_imports_nothing_heavy() -> None:
    code = (
        "import sys, shardwatt.figurelist; "
        "print([m for m in ('pandas', 'matplotlib', 'pyarrow', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_papers_study_has_all_of_its_figures() -> None:
    site = load_site([ROOT / "profiles" / "slurm" / "rehearsal.yaml"])
    study = load_study(ROOT, "paper-rehearsal")
    specs = {spec.name: spec for spec in figures(expand(ROOT, "paper-rehearsal", study, site))}
    for name in ("throughput--cap-250", "power--cap-250"):  # figures 2 and 3
        assert dict(specs[name].fixed).items() >= {("batch", 64), ("length", 256)}
    for kind in ("power-by-shards", "energy-per-token", "energy-per-response"):  # figures 4 to 9
        for length in (512, 1024):
            assert f"{kind}--llama-65b--v100--length-{length}--cap-250" in specs
