"""Guards site files: what they mean, what replaces what, and one clear message for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardwatt.datasheets import DATA_SHEETS
from shardwatt.errors import SiteError
from shardwatt.site import GpuType, load_site, parse_site
from small_project import GPUS, make_site, site_content, write_yaml


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SHARDWATT_MODELS", "SHARDWATT_DATA"):
        monkeypatch.delenv(variable, raising=False)


#: Figures of a device without a data sheet.
PEAK = {"memory_bandwidth_gb_s": 900, "source": "a test"}


def gpu(**changes: Any) -> dict[str, Any]:
    return {"gpus": {"v100": {**GPUS["v100"], **changes}}}


def test_a_site_says_what_a_place_offers(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert site.gpus["v100"].memory_gib == 32
    assert site.gpus["v100"].tdp_w is None, "no power is made up where none is given"
    assert site.models == tmp_path / "models"


def test_a_data_sheet_says_the_compute_capability_where_the_site_does_not(tmp_path: Path) -> None:
    site = make_site(tmp_path, **gpu(data_sheet="v100-sxm2-32gb"))
    assert (site.gpus["v100"].data_sheet, site.gpus["v100"].compute_capability) == ("v100-sxm2-32gb", "7.0")
    assert make_site(tmp_path).gpus["v100"].compute_capability is None
    both = make_site(tmp_path, **gpu(data_sheet="v100-sxm2-32gb", compute_capability="7.0"))
    assert both.gpus["v100"] == site.gpus["v100"]
    again = GpuType.model_validate_json(site.gpus["v100"].model_dump_json())
    assert again == site.gpus["v100"], "ranks read it from a file"


def test_figures_of_the_sites_own_take_the_place_of_a_data_sheet(tmp_path: Path) -> None:
    peak = {"memory_bandwidth_gb_s": 40, "tflops": {"fp32": 0.5}, "source": "measured"}
    found = make_site(tmp_path, gpus={"cpu": {**GPUS["cpu"], "peak": peak}}).gpus["cpu"].peak
    assert found is not None
    assert found.tflops is not None
    assert (found.memory_bandwidth_gb_s, found.tflops.fp32, found.tflops.bf16) == (40, 0.5, None)


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
        (
            {"launcher": "lokal"},
            "launcher: found 'lokal'; did you mean 'local'?; expected 'local' or 'slurm'",
        ),
        ({"name": "My Site"}, "name: found 'My Site'; expected lower-case letters, digits and -"),
        ({"models": 3}, "models: found 3; expected a path"),
        ({"gpus": {}}, "gpus: found {}; expected at least one entry"),
        ({"gpus": None}, "gpus: found nothing; expected keys and values"),
        (
            {"gpus": {"V100": GPUS["v100"]}},
            "gpus.V100: found 'V100'; expected lower-case letters and digits, with single . _ - between "
            "them; did you mean 'v100'?",
        ),
        (
            gpu(memroy_gib=3),
            "gpus.v100.memroy_gib: unknown key; did you mean 'memory_gib'?; "
            "allowed: compute_capability, cores_per_node, data_sheet, environment, kind, links, memory_gib, "
            "meter, peak, per_node, power_limits_w, price_gpu_hour, slurm, tdp_source, tdp_w",
        ),
        (gpu(kind="rocm"), "gpus.v100.kind: found 'rocm'; expected 'cuda' or 'cpu'"),
        (gpu(per_node=0), "gpus.v100.per_node: found 0; expected at least 1"),
        (gpu(per_node=10**12), "gpus.v100.per_node: found 1000000000000; expected at most 1024"),
        (gpu(per_node="2"), "gpus.v100.per_node: found '2'; expected a whole number"),
        (gpu(memory_gib="32 GiB"), "gpus.v100.memory_gib: found '32 GiB'; expected a number"),
        (gpu(memory_gib=float("inf")), "gpus.v100.memory_gib: found inf; expected a finite number"),
        (gpu(tdp_w=0), "gpus.v100.tdp_w: found 0; expected more than 0"),
        (
            gpu(data_sheet="v100-sxm-32gb"),
            "gpus.v100.data_sheet: found 'v100-sxm-32gb'; no data sheet of this name; did you mean "
            f"'v100-sxm2-32gb'?; known: {', '.join(DATA_SHEETS)}",
        ),
        (
            gpu(data_sheet="a100"),
            "gpus.v100.data_sheet: found 'a100'; no data sheet of this name; known: a100-pcie-40gb, "
            "a100-sxm-40gb, a100-pcie-80gb, a100-sxm-80gb",
        ),
        (
            gpu(data_sheet="v100-sxm2-16gb"),
            "gpus.v100: memory_gib: found 32, and data_sheet v100-sxm2-16gb has 16; one of them is another "
            "GPU's",
        ),
        (
            gpu(data_sheet="v100-sxm2-32gb", compute_capability="8.0"),
            "gpus.v100: compute_capability: found 8.0, and data_sheet v100-sxm2-32gb has 7.0; one of them is "
            "another GPU's",
        ),
        (
            gpu(data_sheet="v100-sxm2-32gb", kind="cpu"),
            "gpus.v100: data_sheet: v100-sxm2-32gb is a GPU's; expected figures in `peak` with kind: cpu",
        ),
        (
            gpu(data_sheet="v100-sxm2-32gb", peak={"memory_bandwidth_gb_s": 900, "source": "a test"}),
            "gpus.v100: data_sheet and peak: found both; expected one of them",
        ),
        (
            gpu(data_sheet="v100-pcie-32gb", tdp_w=5),
            "gpus.v100: tdp_w: found 5; expected more than 100, the least that data_sheet v100-pcie-32gb "
            "draws at rest or takes as a limit",
        ),
        (
            gpu(data_sheet="mi300x", tdp_w=100),
            "gpus.v100: tdp_w: found 100; expected more than 140, the least that data_sheet mi300x draws at "
            "rest or takes as a limit",
        ),
        (
            gpu(peak={"source": "a test"}),
            "gpus.v100.peak: expected memory_bandwidth_gb_s, tflops, or both",
        ),
        (
            gpu(peak={**PEAK, "clock_mhz": 1500}),
            "gpus.v100.peak: expected clock_mhz and lowest_clock_mhz, or neither: their ratio counts",
        ),
        (
            gpu(peak={**PEAK, "clock_mhz": 210, "lowest_clock_mhz": 1500}),
            "gpus.v100.peak: lowest_clock_mhz: found 1500, and clock_mhz 210; expected a lower one",
        ),
        (
            gpu(peak={**PEAK, "power_min_w": 0}),
            "gpus.v100.peak.power_min_w: found 0; expected more than 0",
        ),
        (
            gpu(tdp_w=250, peak={**PEAK, "power_min_w": 300}),
            "gpus.v100: peak.power_min_w: found 300, and tdp_w 250; expected less",
        ),
        (
            gpu(peak={**PEAK, "idle_w": 60, "power_min_w": 50}),
            "gpus.v100: peak.idle_w: found 60, and power_min_w 50; expected less",
        ),
        (
            gpu(tdp_w=250, peak={**PEAK, "idle_w": 250}),
            "gpus.v100: peak.idle_w: found 250, and tdp_w 250; expected less",
        ),
        (
            gpu(kind="cpu", tdp_w=250, peak={**PEAK, "idle_w": 300}),
            "gpus.v100: peak.idle_w: found 300, and tdp_w 250; expected less",
        ),
        (
            gpu(kind="cpu", peak={**PEAK, "power_min_w": 50}),
            "gpus.v100: peak.power_min_w: found with kind: cpu; expected it of GPUs alone",
        ),
        (
            gpu(kind="cpu", peak={**PEAK, "clock_mhz": 3000, "lowest_clock_mhz": 800}),
            "gpus.v100: peak.clock_mhz: found with kind: cpu; expected it of GPUs alone",
        ),
        (
            gpu(peak={"tflops": {"fp8": 3}, "source": "a test"}),
            "gpus.v100.peak.tflops.fp8: unknown key; allowed: bf16, fp16, fp32",
        ),
        (
            gpu(peak={"memory_bandwidth_gb_s": 900}),
            "gpus.v100.peak.source: is missing; expected: Where the "
            "figures come from: a data sheet, or how they were measured. Written into every record",
        ),
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


def cluster(words: dict[str, Any] | None = None, site: dict[str, Any] | None = None) -> dict[str, Any]:
    """Changes that make a site a Slurm cluster: words of its GPU type, words of the whole site."""
    return {
        "launcher": "slurm",
        "gpus": {"v100": {**GPUS["v100"], "slurm": words or {}}},
        "slurm": site or {},
    }


def test_a_types_words_replace_the_sites_key_by_key(tmp_path: Path) -> None:
    words = make_site(
        tmp_path,
        **cluster(
            {"partition": "v100", "exclusive": False, "gres": "gpu:v100"}, {"partition": "any", "qos": "q"}
        ),
    ).words("v100")
    assert (words.partition, words.qos, words.exclusive) == ("v100", "q", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            cluster({"exclusive": False}),
            "gpus.v100.slurm: no gres, and exclusive is false; expected the GPUs' name in Slurm, e.g. "
            "gres: gpu:v100, or whole nodes (exclusive: true)",
        ),
        (
            cluster({"memory_per_node_gib": 64.0}, {"memory_per_node_max_gib": 32.0}),
            "gpus.v100.slurm.memory_per_node_max_gib: found 32 GiB, and 64 GiB of memory_per_node_gib; "
            "expected a memory_per_node_gib of at most 32",
        ),
        (
            cluster({"memory_per_node_max_gib": 32.0}),
            "gpus.v100.slurm.memory_per_node_max_gib: found 32 GiB, and no memory_per_node_gib; "
            "expected a memory_per_node_gib of at most 32",
        ),
        (
            cluster({"runtime_min": 120, "runtime_max_min": 60}),
            "gpus.v100.slurm.runtime_max_min: found 60 min, and 120 min of runtime_min; "
            "expected a runtime_min of at most 60",
        ),
        (
            cluster({"runtime_max_min": 180, "runtime_floor_min": 240}),
            "gpus.v100.slurm.runtime_max_min: found 180 min, and 240 min of runtime_floor_min; "
            "expected a runtime_floor_min of at most 180",
        ),
        (
            cluster({"runtime_factor": 0.5}),
            "gpus.v100.slurm.runtime_factor: found 0.5; expected at least 1",
        ),
        (
            cluster({"memory_factor": -1}),
            "gpus.v100.slurm.memory_factor: found -1; expected at least 1",
        ),
        (
            cluster({"runtime_min": 2}),
            "stop_before_limit_s: found 120 s, and a time limit of 120 s for v100; expected less, so that a "
            "cell can run at all",
        ),
        (
            cluster({"gres": "gpu:a100-sxm4-80gb"}),
            "gpus.v100.slurm.gres: found 'gpu:a100-sxm4-80gb'; expected gpu or gpu:TYPE; for a type with a "
            "hyphen: gpu",
        ),
        (
            cluster({"extra": ["--nice=10", "--reservation paper"]}),
            "gpus.v100.slurm.extra.1: found '--reservation paper'; expected a long option such as --nice=10",
        ),
        (
            gpu(environment=["module load cuda\nrm -r x"]),
            "gpus.v100.environment.0: found 'module load cuda\\nrm -r x'; expected one line of shell; write "
            "several lines as several entries",
        ),
    ],
)
def test_what_slurm_would_refuse_is_refused_here(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SiteError) as caught:
        make_site(tmp_path, **changes)
    assert str(caught.value) == f"site.yaml: {message}"


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("--mem=64G", "the keys `memory_per_node_gib` and `memory_per_node_max_gib`"),
        ("--parti=x", "the key `partition`"),
        ("--comment=mine", "nothing: Snakemake's executor needs it"),
        ("--signal=INT@9", "the site's key `stop_before_limit_s`"),
        ("--gpus-per-node=2", "the key `gres`"),
        ("--time=10", "the keys `runtime_min` and `runtime_max_min`"),
    ],
)
def test_words_that_others_write_are_refused_with_what_to_use_instead(
    tmp_path: Path, word: str, instead: str
) -> None:
    with pytest.raises(SiteError) as caught:
        make_site(tmp_path, **cluster({"extra": [word]}))
    name = word.partition("=")[0]
    expected = f"found '{word}'; sbatch's {name} is not for `extra`; use {instead}"
    assert str(caught.value) == f"site.yaml: gpus.v100.slurm.extra.0: {expected}"


@pytest.mark.parametrize(
    "word",
    ["--reservation=paper", "--nice=10", "--exclude=n1,n2", "--time-min=30", "--mem-bind=local", "--no-kill"],
)
def test_words_that_only_begin_like_those_are_taken(tmp_path: Path, word: str) -> None:
    assert make_site(tmp_path, **cluster({"extra": [word]})).words("v100").extra == [word]


def test_what_jobs_ask_of_slurm_is_not_checked_where_there_is_none(tmp_path: Path) -> None:
    changes = {**cluster({"runtime_min": 1}), "launcher": "local"}
    assert make_site(tmp_path, **changes).words("v100").runtime_min == 1


@pytest.mark.parametrize(
    ("words", "planned"),
    [
        ({}, True),
        ({"runtime_min": 60}, False),
        ({"runtime_min": 60, "runtime_factor": 3}, True),
        ({"runtime_min": 60, "runtime_floor_min": 5}, True),
    ],
)
def test_a_limit_of_the_sites_own_stands_unless_it_asks_for_the_plans(
    tmp_path: Path, words: dict[str, Any], planned: bool
) -> None:
    assert make_site(tmp_path, **cluster(words)).words("v100").has_planned_time is planned
