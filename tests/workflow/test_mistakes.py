"""What users get wrong before anything runs: one clear message, no traceback, a non-zero exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workflow_project import Project

pytestmark = pytest.mark.workflow

REPORT = "results/tiny/report.html"


def refusal(project: Project, *words: str) -> str:
    """The message with which a run is refused, after the banner."""
    run = project.snakemake(*words)
    assert run.returncode != 0, run.stdout
    assert "Traceback" not in run.stdout
    assert not (project.root / "results").exists()
    return run.stdout.rpartition("Building DAG of jobs...")[2]


def test_unknown_study(project: Project) -> None:
    message = refusal(project, "-n", "results/tinny/report.html")
    assert "unknown study 'tinny'; did you mean 'tiny'?" in message
    assert len(message.strip().splitlines()) == 1


def test_misspelt_key(project: Project) -> None:
    project.write_study(temprature=0.5)
    message = refusal(project, "-n", REPORT)
    assert "tiny.yaml: temprature: unknown key; did you mean 'temperature'?" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "referense"}, ["matrix.0.engine", "'referense'", "did you mean 'reference'"]),
        ({"gpu": "v100"}, ["matrix.0.gpu", "'v100'", "allowed: cpu"]),
        ({"dataset": "demo-gsm8"}, ["matrix.0.dataset", "did you mean 'demo-gsm8k'"]),
        ({"model": "tinny"}, ["unknown model 'tinny'", "did you mean 'tiny'"]),
        ({"shards": 3}, ["shards: 3 does not divide tiny's 4 heads", "use 1, 2 or 4"]),
        ({"precision": "fp8"}, ["matrix.0.precision", "'fp8'", "'fp32', 'bf16' or 'fp16'"]),
        ({"batch": 0}, ["matrix.0.batch", "found 0"]),
    ],
)
def test_unknown_or_impossible_axis_value(
    project: Project, changes: dict[str, object], words: list[str]
) -> None:
    project.write_study(matrix=project.block(**changes))
    message = refusal(project, "-n", REPORT)
    for word in words:
        assert word in message


def test_unknown_cell(project: Project) -> None:
    target = project.cells()[0].target.replace("batch=2", "batch=3")
    assert "has no cell engine=reference/model=tiny" in refusal(project, "-n", target)


def test_a_path_that_is_no_cell(project: Project) -> None:
    refusal(project, "-n", "results/tiny/cells/../../../etc/result.json")


def test_no_site(project: Project) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--cores", "1", REPORT],
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode != 0
    assert "no site: expected a site file; run with --profile profiles/local" in run.stdout
    assert "Traceback" not in run.stdout


def test_wrong_site(project: Project) -> None:
    site = project.root / "profiles" / "local" / "site.yaml"
    site.write_text(site.read_text().replace("launcher: local", "launcher: lokal"))
    run = project.snakemake("-n", REPORT)
    assert run.returncode != 0
    assert "launcher: found 'lokal'" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_site_file_of_ones_own(project: Project) -> None:
    site = project.root / "my site.yaml"
    content = (project.root / "profiles" / "local" / "site.yaml").read_text()
    site.write_text(content.replace("name: local", "name: mine").replace("data: data", "data: my data"))
    run = project.snakemake("-n", REPORT, "--configfile", "my site.yaml")
    assert run.returncode == 0, run.stdout


def test_unknown_figure(project: Project) -> None:
    message = refusal(project, "-n", "results/tiny/figures/pwer.svg")
    assert "has no figure 'pwer'; did you mean 'power'?" in message
