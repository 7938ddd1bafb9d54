"""`make rehearse-paper`: a whole study on a Slurm cluster of this machine, with simulated GPUs.

The cluster has the paper's nodes. What has run stays; started again, the rehearsal goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import FrameType

import simulated_nvml
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.site import Site, load_site
from slurm_cluster.cluster import Cluster
from slurm_cluster.daemons import wait_until
from slurm_cluster.install import why_not
from slurm_cluster.layout import ClusterError, NodeGroup, state_file

SITE = Path("profiles") / "slurm" / "rehearsal.yaml"
FOLDER = Path(".slurm-cluster") / "rehearsal"
STUDY = "paper-rehearsal"

#: Longest time in s that Snakemake gets to cancel its jobs, and then those to end.
_END_TIMEOUT_S = 60.0

_ENVIRONMENT = """\
# The simulated driver on a node of {folder}: written by each rehearsal, for the site's environment.
export LD_LIBRARY_PATH={library}"${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
node=$(hostname)
case $node in
{cases}
*) echo "$node is no node of the rehearsal" >&2; false ;;
esac &&
# What the driver knows of limits is kept for the length of a job.
export SIMULATED_NVML_POWER="$node=$idle_w" SIMULATED_NVML_LIMITS="$limits_w" SIMULATED_NVML_TICK_S=0.02 \\
    SIMULATED_NVML_STATE={gpus}/"$SLURM_JOB_ID.$node"
"""


def groups() -> tuple[NodeGroup, ...]:
    """The nodes that the site speaks of."""
    site = _site()
    return tuple(
        NodeGroup(name, site.words(name).nodes or 1, gpus_per_node=kind.per_node)
        for name, kind in site.gpus.items()
    )


@cache
def _site() -> Site:
    return load_site([Path(__file__).parents[2] / SITE])


def prepare(folder: Path) -> dict[str, str]:
    """Build the simulated driver and write what makes nodes ready for it.

    Args:
        folder: of the cluster; what an earlier rehearsal left in it is replaced.

    Returns:
        The variables that jobs on it need.

    Raises:
        ClusterError: the driver cannot be built.
    """
    folder = folder.resolve()
    for name in ("driver", "gpus"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "gpus").mkdir(parents=True)
    try:
        library = simulated_nvml.build(folder / "driver")
    except (FileNotFoundError, subprocess.CalledProcessError) as problem:
        raise ClusterError(f"the simulated driver cannot be built: {problem}; it needs gcc") from None
    text = _ENVIRONMENT.format(
        folder=folder,
        library=shlex.quote(str(library)),
        gpus=shlex.quote(str(folder / "gpus")),
        cases="\n".join(map(_case, groups())),
    )
    (folder / "environment.sh").write_text(text)
    # A cell looks for this one before it starts anything on its nodes.
    draws = folder / "gpus" / "draws"
    return {"SHARDWATT_REHEARSAL": str(folder), "SIMULATED_NVML_DRAW": str(draws)}


def _case(group: NodeGroup) -> str:
    """A line of shell: what the GPUs of a group's nodes draw by themselves, and their power limits."""
    kind = _site().gpus[group.name]
    assert kind.data_sheet is not None, group
    assert kind.power_limits_w is not None, group
    sheet = DATA_SHEETS[kind.data_sheet]
    idle_w = ";".join([f"{sheet.idle_w:g}"] * group.gpus_per_node)
    limits_w = ":".join(f"{watts:g}" for watts in (*kind.power_limits_w, sheet.tdp_w))
    return f"{group.name}-*) idle_w='{idle_w}' limits_w={limits_w} ;;"


def first_job_line() -> str:
    """The line of slurm.conf after which no job has the number of an earlier cluster's: logs and attempts
    of cells carry these numbers."""
    # Seconds pass faster than jobs start; Slurm counts to 67 million.
    return f"FirstJobId={int(time.time()) % 60_000_000 + 1}"


def command(targets: Sequence[str]) -> list[str]:
    """The words that run targets on the cluster; this folder is the project's."""
    return [
        *(sys.executable, "-m", "snakemake", "--profile", "profiles/slurm", *targets),
        # `_only_one` keeps other rehearsals away. Snakemake's own lock would outlive it where it is killed,
        # and `--unlock` would take away those of other runs in this folder.
        "--nolock",
        # Nobody else asks this slurmctld anything.
        *("--slurm-init-seconds-before-status-checks", "5", "--latency-wait", "10"),
        *("--configfile", str(SITE)),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Rehearse; returns the exit code."""
    options = _parser().parse_args(arguments)
    _on_signals(_end)
    targets = options.target or [f"results/{options.study}/report.html"]
    try:
        with _only_one(options.folder):
            return _rehearse(options.folder, options.study, targets)
    except ClusterError as problem:
        print(f"rehearse-paper: {problem}", file=sys.stderr)
        return 1
    except _Ended:
        return 130


def _rehearse(folder: Path, study: str, targets: Sequence[str]) -> int:
    if reason := why_not():
        raise ClusterError(f"no cluster can be started here: {reason}")
    if state_file(folder.resolve()).exists():
        Cluster(folder).stop()  # of a rehearsal that was killed
    began_s = time.monotonic()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = own | prepare(folder) | {"OMP_NUM_THREADS": "1"}
    cluster = Cluster(folder, groups=groups(), conf=[first_job_line()])
    try:
        cluster.start()
        print(
            _BEGIN.format(folder=cluster.base, conf=cluster.layout.slurm_conf, site=SITE, study=study),
            flush=True,
        )
        code = _run(command(targets), cluster, environment | cluster.environment())
    finally:
        _on_signals(signal.SIG_IGN)
        print("rehearse-paper: stopping the cluster", flush=True)
        cluster.stop()
    minutes = (time.monotonic() - began_s) / 60
    print((_DONE if code == 0 else _NOT_DONE).format(study=study, minutes=minutes))
    return code


_BEGIN = """\
rehearse-paper: the cluster runs in {folder}. Look at it from another shell, in the project's folder, as root:

  export SLURM_CONF={conf} SHARDWATT_SITE={site}
  squeue
  .venv/bin/shardwatt cells {study}

Ctrl-C stops it; what has run stays, and the next `make rehearse-paper` goes on from there.
"""

_DONE = """
The rehearsal of study '{study}' is done, after {minutes:.0f} minutes. No model ran: all is simulated. See:
  report       results/{study}/report.html (open it in a browser)
  figures      results/{study}/figures/ (SVG, PDF, PNG)
  tables       results/{study}/tables/ (CSV, Markdown, LaTeX)
  published    results/{study}/tables/published.md, the paper's values beside these
  all cells    results/{study}/cells.csv and cells.parquet"""

_NOT_DONE = """
The rehearsal of study '{study}' was not finished, after {minutes:.0f} minutes: see above, and
results/{study}/partial where there is one. `make rehearse-paper` goes on from here."""


def _run(words: Sequence[str], cluster: Cluster, environment: Mapping[str, str]) -> int:
    """Run Snakemake to its end; a signal has it cancel its jobs first, and those end in order."""
    process = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    except _Ended:
        print("\nrehearse-paper: ending the run", flush=True)
        _on_signals(signal.SIG_IGN)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired, ClusterError):
            process.wait(_END_TIMEOUT_S)
            wait_until(lambda: not cluster.run("squeue", "--noheader"), "no job is left", _END_TIMEOUT_S)
        return 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder for as long as this is entered: whatever cluster is found in it then is a dead one's.

    Raises:
        ClusterError: another rehearsal holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(
                f"{folder}: another rehearsal runs here; wait for it, or stop it by Ctrl-C"
            ) from None
        yield


class _Ended(Exception):
    """A signal asked for the end."""


def _on_signals(action: object) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)  # type: ignore[arg-type]


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rehearse-paper", description=__doc__)
    parser.add_argument("target", nargs="*", help="Snakemake's targets (default: the study's report)")
    parser.add_argument("--study", default=STUDY, help=f"a study of simulated engines (default: {STUDY})")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where everything of the cluster lies")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
