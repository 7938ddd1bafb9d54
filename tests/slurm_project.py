"""A small project on a test cluster: run through the profile for Slurm, watched and struck by drills."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shardwatt.attempts import Attempt, Failure
from shardwatt.cell import Cell
from shardwatt.layout import CellPaths
from shardwatt.leftovers import attempts_of, comment_of
from shardwatt.matrix import expand
from shardwatt.recordfiles import read
from shardwatt.run.exchange import Progress, RankStart, rank_end_file, rank_start_file, read_progress
from shardwatt.site import load_site
from shardwatt.study import load_study
from slurm_cluster import Cluster
from workflow_project import Project, copy_project, planned_jobs

#: Longest time in s that a drill waits for anything: a sign that it never comes, however slow the machine.
PATIENCE_S = 900.0

#: For `crawl`: bits a second, and the bytes that pass at full speed before it comes to that: enough for
#: two ranks to start, to meet and to answer their first prompt.
CRAWL_BITS = 40_000
HEAD_START_BYTES = 450_000

#: Of cells whose two ranks exchange six times HEAD_START_BYTES: in seconds over a network that lets them,
#: in seven minutes over one that crawls.
TALKATIVE: dict[str, Any] = {"prompts": 12, "warmup_tokens": 1}
TALKATIVE_LENGTH = 24

#: Snakemake, whose executor looks every 4 s. By itself it looks ever more rarely, up to 3 minutes apart, and
#: sleeps as long before it ends.
_SNAKEMAKE = """
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor
pace = Executor.next_seconds_between_status_checks
Executor.next_seconds_between_status_checks = pace.setter(lambda self, s: pace.fset(self, min(s, 4)))
main()
"""


def gpu_type(partition: str, *, gres: str | None = None, nodes: int = 8, **words: Any) -> dict[str, Any]:
    """A GPU type of one device a node, played by a processor."""
    return {
        "kind": "cpu",
        "per_node": 1,
        "memory_gib": 1,
        "slurm": {"partition": partition, "gres": gres or f"gpu:{partition}", "nodes": nodes, **words},
    }


def site(gpus: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A site for drills: no time in it runs out on a machine that is merely slow."""
    content: dict[str, Any] = {
        "name": "test-cluster",
        "launcher": "slurm",
        "models": "models",
        "data": "data",
        "threads_per_rank": 1,
        "start_timeout_s": 600,
        "collective_timeout_s": 120,
        "stop_before_limit_s": 20,
        "slurm": {"runtime_min": 20, "memory_per_node_gib": 1},
        "gpus": gpus,
    }
    return content | changes


@dataclass(kw_only=True)
class SlurmProject(Project):
    """A copy of the project whose site is a test cluster.

    Attributes:
        cluster: where its jobs run.
        runs: what was started.
    """

    cluster: Cluster
    runs: list[Run] = field(default_factory=list)

    def write_site(self, gpus: dict[str, Any], **changes: Any) -> None:
        self.site_file.write_text(yaml.safe_dump(site(gpus, **changes)), encoding="utf-8")

    @property
    def site_file(self) -> Path:
        return self.root / "profiles" / "slurm" / "site.yaml"

    def snakemake_command(self, *words: str) -> list[str]:
        """With the real profile, but for times that would make a test long."""
        return [
            *(sys.executable, "-c", _SNAKEMAKE, "--profile", "profiles/slurm"),
            *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5", *words),
        ]

    def start(self, *words: str) -> Run:
        """Start Snakemake; its targets, and words beside the profile's."""
        self.runs.append(Run(self, words))
        return self.runs[-1]

    def stop(self) -> None:
        """Kill what a failed test has left of Snakemake."""
        for run in self.runs:
            run.stop()

    def planned(self, *words: str) -> dict[str, int]:
        """Jobs by rule that Snakemake would run now."""
        done = self.snakemake("-n", *words)
        assert done.returncode == 0, done.stdout
        return planned_jobs(done.stdout)

    def cells(self, name: str = "tiny") -> list[CellPaths]:
        cells: tuple[Cell, ...] = expand(
            self.root, name, load_study(self.root, name), load_site([self.site_file])
        )
        return [CellPaths(self.root, name, cell) for cell in cells]

    def jobs(self, paths: CellPaths) -> list[str]:
        """Numbers of all jobs of a cell that Slurm remembers, oldest first."""
        printed = self.cluster.run("squeue", "--states=all", "--noheader", "--format=%A %k")
        words = (line.split(maxsplit=1) for line in printed.splitlines())
        comment = comment_of(paths.study, paths.cell.path)
        return sorted((number for number, found in words if found.strip() == comment), key=int)

    def job(self, paths: CellPaths) -> str:
        """Number of a cell's newest job, once it has one."""
        await_true(lambda: bool(self.jobs(paths)), f"a job of {paths.cell.path}")
        return self.jobs(paths)[-1]

    def job_state(self, job_id: str) -> str:
        """Slurm's word, such as PENDING."""
        words = ("squeue", "--states=all", "--noheader", f"--jobs={job_id}", "--format=%T")
        return self.cluster.run(*words).strip()

    def work_folder(self, paths: CellPaths) -> Path | None:
        """Where the cell's running attempt writes."""
        found = [path for path in paths.work("").parent.glob(f"{paths.work('').name}*") if path.is_dir()]
        return max(found, key=lambda path: path.stat().st_mtime, default=None)

    def slurm_log(self, job_id: str) -> Path:
        """Slurm's own log of a job."""
        (log,) = self.root.glob(f"logs/slurm/*/*/{job_id}.log")
        return log

    def progress(self, paths: CellPaths) -> Progress | None:
        folder = self.work_folder(paths)
        return None if folder is None else read_progress(folder)

    def await_run(self, paths: CellPaths, prompts: int = 0) -> None:
        """Wait until a cell answers its prompts, and has done so many of them."""

        what = f"{paths.cell.path} to answer {prompts} prompts"
        await_true(lambda: self._answers(paths, prompts), what, said=lambda: self._logs_of([paths]))

    def _answers(self, paths: CellPaths, prompts: int = 0) -> bool:
        progress = self.progress(paths)
        return progress is not None and progress.stage == "run" and progress.prompts_done >= prompts

    def _logs_of(self, cells: Iterable[CellPaths]) -> str:
        return "\n".join(f"{paths.cell.path}\n{tail(paths.supervisor_log)}" for paths in cells)

    def strike(self, strokes: dict[CellPaths, Callable[[CellPaths], Any]]) -> None:
        """Do to each cell what is to be done to it as soon as it answers its prompts, in whichever order they
        come to that."""
        waiting = dict(strokes)

        def are_struck() -> bool:
            for paths in [paths for paths in waiting if self._answers(paths)]:
                waiting.pop(paths)(paths)
            return not waiting

        await_true(are_struck, "all cells to answer prompts", said=lambda: self._logs_of(waiting))

    def hold(self, paths: CellPaths) -> None:
        """Keep a cell that answers its prompts from ending: its rank 1 is stopped."""
        self.signal_rank(paths, 1, "STOP")

    def rank(self, paths: CellPaths, rank: int) -> RankStart:
        found = self._rank(paths, rank)
        assert found is not None, f"rank {rank} of {paths.cell.path} has not begun"
        return found

    def _rank(self, paths: CellPaths, rank: int) -> RankStart | None:
        folder = self.work_folder(paths)
        try:
            return None if folder is None else read(RankStart, rank_start_file(folder, rank))
        except FileNotFoundError:
            return None

    def await_told(self, paths: CellPaths, rank: int) -> None:
        """Wait until a rank has told how it ended."""

        def told() -> bool:
            folder = self.work_folder(paths)
            return folder is None or rank_end_file(folder, rank).exists()

        await_true(told, f"the end of rank {rank} of {paths.cell.path}")

    def signal_rank(self, paths: CellPaths, rank: int, name: str) -> RankStart:
        """Send a signal to a rank, from its own node, and return who it was."""
        found = self.rank(paths, rank)
        self.signal(found.node, found.pid, name)
        return found

    def signal(self, node: str, pid: int, name: str) -> None:
        """Send a signal to a process on a node, which counts processes by itself."""
        subprocess.run(self.cluster.node(node).command(["kill", "-s", name, str(pid)]), check=True)

    def attempts(self, paths: CellPaths) -> list[Attempt]:
        return attempts_of(paths)

    def failure(self, paths: CellPaths) -> Failure:
        return read(Failure, paths.failure)

    def told(self, name: str = "tiny") -> dict[str, tuple[str, str | None]]:
        """Outcome and reason of each cell as `shardwatt cells` tells them, by its GPU type."""
        run = self.shardwatt("cells", name, "--format", "json")
        assert run.returncode == 0, run.stderr
        found = json.loads(run.stdout)
        return {cell["cell"]["gpu"]: (cell["outcome"], cell["reason"]) for cell in found}

    def assert_nothing_left(self, but: Iterable[str] = ()) -> None:
        """Neither a job, nor a process of one on any node, nor a work folder is left.

        Args:
            but: nodes that are not looked at.
        """
        await_true(lambda: not self.cluster.run("squeue", "--noheader").strip(), "an empty queue")
        jobs = self.cluster.run("squeue", "--states=all", "--noheader", "--format=%A").split()
        nodes = [self.cluster.node(name) for name in self.cluster.layout.node_names() if name not in but]

        def processes() -> list[int]:
            return [pid for node in nodes for job in jobs for pid in node.job_pids(int(job))]

        await_true(lambda: not processes(), "no process of a job on any node")
        assert not list(self.root.glob("results/*/.work/*"))


class Run:
    """Snakemake in the background, its output in a file.

    Args:
        project: what it works on.
        words: targets and options.
    """

    def __init__(self, project: SlurmProject, words: Iterable[str]) -> None:
        number = len(list(project.root.glob("snakemake-*.log")))
        self.log = project.root / f"snakemake-{number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                project.snakemake_command(*words),
                cwd=project.root,
                env=project.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def ended(self) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"Snakemake has not ended in {PATIENCE_S:g} s:\n{self.output}") from None

    def stop(self) -> None:
        """Kill it, if it still runs; its jobs run on."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def make_project(root: Path, cluster: Cluster, models: Path) -> SlurmProject:
    """A project of its own for a test, on a cluster, with models that are there already.

    Args:
        root: new folder for it.
        cluster: where its jobs run.
        models: from `make_models`.
    """
    copied = copy_project(root)
    shutil.copytree(models, root / "models", symlinks=True)
    site_file = root / "profiles" / "slurm" / "site.yaml"
    # What Snakemake tells its rules, for commands that are called by hand.
    own = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "SHARDWATT_SITE": str(site_file)}
    environment = copied.environment | cluster.environment() | own
    return SlurmProject(root=root, environment=environment, cluster=cluster)


def make_models(folder: Path, shards: Iterable[int]) -> Path:
    """The tiny model, made once for all test processes that name the same folder.

    Args:
        folder: where; created if need be.
        shards: in how many shards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = folder / "project"
        if not root.exists():
            project = copy_project(root)
            for count in shards:
                made = project.shardwatt("make-model", "tiny", str(count))
                assert made.returncode == 0, made.stderr
    return root / "models"


def crawl(cluster: Cluster, nodes: Iterable[str]) -> None:
    """Slow down the way to nodes: what they are sent crawls, once the first of it has passed."""
    for node in nodes:
        words = ["tc", "qdisc", "replace", "dev", cluster.layout.bridge_port(node), "root", "tbf"]
        words += ["rate", str(CRAWL_BITS), "burst", str(HEAD_START_BYTES), "limit", "10mb"]
        subprocess.run(words, check=True)


def run_freely(cluster: Cluster, nodes: Iterable[str]) -> None:
    """Take back what `crawl` did."""
    for node in nodes:
        subprocess.run(["tc", "qdisc", "delete", "dev", cluster.layout.bridge_port(node), "root"], check=True)


def await_true(
    condition: Callable[[], bool],
    what: str,
    timeout_s: float = PATIENCE_S,
    said: Callable[[], str] = str,
) -> None:
    """Wait until a condition holds; fails with what was waited for, and what was said meanwhile."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s:g} s for {what}\n{said()}"
        time.sleep(0.1)


def tail(path: Path) -> str:
    """The last lines of a log; empty where there is none."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-30:]) if path.is_file() else ""
