"""Guards the plan for a cluster, on a machine that has none, and what the real executor tells sbatch."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from slurm_cluster.rehearsal import SITE as SITE_FILE
from slurm_cluster.rehearsal import command
from workflow_project import Project, planned_jobs

pytestmark = pytest.mark.workflow

REPORT = "results/tiny/report.html"
SITE = {
    "name": "testbed",
    "launcher": "slurm",
    "models": "models",
    "data": "data",
    "max_gpu_hours": 8,
    "gpus": {
        "cpu": {
            "kind": "cpu",
            "per_node": 1,
            "memory_gib": 2,
            "slurm": {
                "partition": "v100",
                "gres": "gpu:v100",
                "constraint": "v100&fast",
                "nodes": 2,
                "cpus_per_rank": 2,
                "memory_per_node_gib": 2,
                "memory_per_node_max_gib": 4,
                "runtime_min": 60,
                "runtime_max_min": 240,
                "extra": ["--reservation=paper"],
            },
        }
    },
}

#: Programs of Slurm that know no job and take none, and write down what sbatch was asked for.
PROGRAMS = {
    "sbatch": 'import json, sys\nprint(json.dumps(sys.argv[1:]), file=open({log!r}, "a"))\nsys.exit(1)',
    "squeue": "",
    "sinfo": "",
    "sacct": "import sys; sys.exit(1)",
    "scontrol": "import sys; sys.exit(1)",
    "scancel": "",
}


@pytest.fixture
def cluster(project: Project) -> Project:
    """A project whose site is a cluster of two nodes with a GPU each."""
    write_site(project)
    return project


def write_site(project: Project, **changes: object) -> None:
    path = project.root / "profiles" / "slurm" / "site.yaml"
    path.write_text(yaml.safe_dump({**SITE, **changes}), encoding="utf-8")


def on_cluster(project: Project, *words: str, profile: str = "slurm") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--profile", f"profiles/{profile}"]
    # Before its end the executor sleeps for as long as it would between two looks at the queue.
    command += ["--slurm-init-seconds-before-status-checks", "1", *words]
    environment = {key: value for key, value in project.environment.items() if not key.startswith("SLURM_")}
    return subprocess.run(
        command,
        cwd=project.root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )


def install_programs(project: Project) -> Path:
    """Put the programs first on PATH; returns the file of sbatch's words, a list a line."""
    folder, log = project.root / "programs", project.root / "sbatch.jsonl"
    folder.mkdir()
    for name, program in PROGRAMS.items():
        path = folder / name
        path.write_text(f"#!{sys.executable}\n{program.format(log=str(log))}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    project.environment["PATH"] = os.pathsep.join([str(folder), project.environment["PATH"]])
    return log


def test_the_plan_shows_each_cell_with_nodes_partition_and_time(cluster: Project) -> None:
    run = on_cluster(cluster, "-n", REPORT)
    assert run.returncode == 0, run.stdout
    assert planned_jobs(run.stdout)["cell"] == 2
    one, two = (paths.cell.path for paths in cluster.cells())
    lines = [line.strip() for line in run.stdout.splitlines()]
    for nodes, path in (("1 node x 1 cpu", one), ("2 nodes x 1 cpu", two)):
        below = lines[lines.index(path) - 1]
        planned = rf": tiny: {nodes}, partition v100, time 1:00 h, plan 0:0\d h, 2 GiB a node$"
        assert re.search(planned, below), below
    assert lines[-2].startswith("the plan predicts ")
    assert lines[-1] == "2 cells to submit, at most 3 GPU hours at the first attempt (max_gpu_hours: 8)"


def test_a_shape_that_nodes_cannot_hold_is_refused_in_the_plan_and_in_the_list(cluster: Project) -> None:
    gpus = {"cpu": {**SITE["gpus"]["cpu"], "slurm": {**SITE["gpus"]["cpu"]["slurm"], "nodes": 1}}}  # type: ignore[index]
    write_site(cluster, gpus=gpus)
    message = (
        "shards: 2 needs 2 nodes of 1 cpu, and site 'testbed' has 1; use 1, or correct gpus.cpu.slurm.nodes"
    )
    run = on_cluster(cluster, "-n", REPORT)
    assert run.returncode != 0
    assert message in run.stdout
    assert "Traceback" not in run.stdout
    listed = cluster.shardwatt("cells", "tiny", "--site", "profiles/slurm/site.yaml")
    assert listed.returncode != 0
    assert message in listed.stderr
    assert "Traceback" not in listed.stderr


def test_every_attempt_reaches_sbatch_with_its_own_words(cluster: Project) -> None:
    log = install_programs(cluster)
    target = cluster.cells()[1].target
    run = on_cluster(cluster, target)
    assert run.returncode != 0, run.stdout
    attempts = [json.loads(line) for line in log.read_text().splitlines()]
    asked = []
    for words in attempts:
        start = words.index("-p")
        asked.append(words[start : words.index("-D")])
        assert "--wrap" in words[-1]
        assert f"--attempt {len(asked)}" in words[-1]
    shape = ["--nodes=2", "--requeue", "--cpus-per-task=2", "--exclusive", "--signal=TERM@60"]
    shape += ["--open-mode=append", "--exclude=", "--reservation=paper"]
    assert asked == [
        ["-p", "v100", "-t", minutes, "-C", "v100&fast", "--mem", memory, *shape]
        for minutes, memory in (("60", "2048"), ("120", "3072"), ("240", "4096"))
    ]
    assert all(words[-2] == "--gres=gpu:v100:1" for words in attempts)


def test_a_target_that_runs_no_cell_needs_no_squeue_that_works(cluster: Project) -> None:
    """Where other jobs are not known a cell could be submitted twice; a plan could not."""
    install_programs(cluster)
    (cluster.root / "programs" / "squeue").write_text("#!/bin/sh\necho no controller >&2\nexit 1\n")
    run = on_cluster(cluster, "results/tiny/plan.csv")
    assert run.returncode == 0, run.stdout
    assert "jobs of another run are not known" in run.stdout
    refused = on_cluster(cluster, cluster.cells()[0].target)
    assert refused.returncode != 0
    assert "shardwatt: `squeue -h" in refused.stdout
    assert "shardwatt: `squeue -h" not in run.stdout
    assert not (cluster.root / "sbatch.jsonl").exists(), "nothing was submitted"


def test_a_rehearsal_goes_on_where_one_before_it_was_killed(cluster: Project) -> None:
    """Snakemake's lock outlives it when it is killed."""
    install_programs(cluster)
    target = "results/paper-rehearsal/plan.csv"
    lock = cluster.root / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(f"{target}\n")
    refused = on_cluster(cluster, target, "--configfile", str(SITE_FILE))
    assert "LockException" in refused.stdout
    run = subprocess.run(
        command([target]), cwd=cluster.root, env=cluster.environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert lock.exists(), "it may be another run's"


def test_more_gpu_hours_than_agreed_are_refused_before_anything_is_submitted(cluster: Project) -> None:
    write_site(cluster, max_gpu_hours=2)
    log = install_programs(cluster)
    planned = on_cluster(cluster, "-n", REPORT)
    assert planned.returncode == 0
    assert planned.stdout.rstrip().endswith(": more than max_gpu_hours, 2; a run will be refused")
    run = on_cluster(cluster, REPORT)
    assert run.returncode != 0
    assert "this run may take 3 GPU hours, and max_gpu_hours is 2; nothing was submitted" in run.stdout
    assert "Traceback" not in run.stdout
    assert not log.exists()
    agreed = on_cluster(cluster, REPORT, "--retries", "0", "--config", "max_gpu_hours=3")
    assert "max_gpu_hours is" not in agreed.stdout
    assert len(log.read_text().splitlines()) == 2, "one rejected submission stops no other"


def test_a_limit_that_is_no_number_is_refused(cluster: Project) -> None:
    run = on_cluster(cluster, "-n", REPORT, "--config", "max_gpu_hours=many")
    assert run.returncode != 0
    assert "max_gpu_hours: found 'many'; expected a number of GPU hours above 0" in run.stdout
    assert "Traceback" not in run.stdout


def test_cells_of_a_cluster_do_not_start_on_the_login_node(cluster: Project) -> None:
    run = on_cluster(cluster, REPORT, "--configfile", "profiles/slurm/site.yaml", profile="local")
    assert run.returncode != 0
    assert "jobs would run on this machine; use --profile profiles/slurm" in run.stdout
    assert "Traceback" not in run.stdout
    assert not (cluster.root / "results").exists()


def test_cells_of_one_machine_are_not_submitted(cluster: Project) -> None:
    log = install_programs(cluster)
    run = on_cluster(cluster, REPORT, "--configfile", "profiles/local/site.yaml")
    assert run.returncode != 0
    assert "launcher: site 'local' has `local`, and jobs go to Slurm" in run.stdout
    assert not log.exists()


def test_a_site_without_a_limit_of_its_own_asks_for_the_plans(cluster: Project) -> None:
    log = install_programs(cluster)
    words = {key: value for key, value in SITE["gpus"]["cpu"]["slurm"].items() if key != "runtime_min"}  # type: ignore[index]
    write_site(cluster, gpus={"cpu": {**SITE["gpus"]["cpu"], "slurm": {**words, "runtime_floor_min": 3}}})  # type: ignore[index]
    target = cluster.cells()[1].target
    planned = on_cluster(cluster, "-n", target)
    shown = re.search(r"time 0:(\d\d) h, plan 0:(\d\d) h", planned.stdout)
    assert shown is not None, planned.stdout
    limit_min, plan_min = map(int, shown.groups())
    assert limit_min >= max(3, plan_min + 2), "a cell ends itself 2 min before its limit"
    assert limit_min < 60
    run = on_cluster(cluster, target, "--retries", "0")
    assert run.returncode != 0
    (asked,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert asked[asked.index("-t") + 1] == str(limit_min)
