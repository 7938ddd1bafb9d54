"""A node whose simulated GPUs have power limits, and guards that set them: for tests of power caps."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import simulated_nvml
from shardwatt.locks import boot_id
from shardwatt.power.limits.files import LimitEndFile, LimitFile, limit_end_path, limit_path
from shardwatt.power.limits.lease import Lease
from shardwatt.power.process import own_space
from shardwatt.recordfiles import read

#: Of every GPU, in W.
LEAST_W, MOST_W, DEFAULT_W = 100, 300, 300
CAP_W = 175

GPU_TYPE = json.dumps({"kind": "cuda", "per_node": 2, "memory_gib": 80})

_PATIENCE_S = 600.0

#: Sets a limit through the simulated library: what `nvidia-smi -i UUIDS -pl W` does.
SET_LIMIT = """\
#!{python}
import sys
import pynvml
pynvml.nvmlInit()
watts, uuids = sys.argv[1:]
for uuid in uuids.split(","):
    pynvml.nvmlDeviceSetPowerManagementLimit(pynvml.nvmlDeviceGetHandleByUUID(uuid), 1000 * int(watts))
"""


#: What the scripts for sites use of NVIDIA's tool, on the simulated GPUs.
NVIDIA_SMI = """\
#!{python}
import sys
import pynvml
pynvml.nvmlInit()
words = sys.argv[1:]
assert words[0] == "-i", words
for name in words[1].split(","):
    by_uuid = name.startswith("GPU-")
    gpu = pynvml.nvmlDeviceGetHandleByUUID(name) if by_uuid else pynvml.nvmlDeviceGetHandleByIndex(int(name))
    if words[2] == "-pl":
        least, most = pynvml.nvmlDeviceGetPowerManagementLimitConstraints(gpu)
        if not least <= int(words[3]) * 1000 <= most:
            sys.exit("Provided power limit is not a valid power limit")
        pynvml.nvmlDeviceSetPowerManagementLimit(gpu, int(words[3]) * 1000)
    else:
        assert words[2:] == ["--query-gpu=index,power.limit", "--format=csv,noheader,nounits"], words
        limit_w = pynvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000
        print(f"{pynvml.nvmlDeviceGetIndex(gpu)}, {limit_w:.2f}")
"""

#: Prologs, Epilogs and the command for sudo, as sites install them.
SCRIPTS = Path(__file__).parents[1] / "profiles" / "slurm" / "power-limits"


def site_script(name: str, into: Path, **variables: object) -> Path:
    """A copy of a site's script with some of the variables at its head set to a test's own."""
    text = (SCRIPTS / name).read_text()
    for variable, value in variables.items():
        lines = [line for line in text.splitlines() if line.startswith(f"{variable}=")]
        assert len(lines) == 1, f"{name}: {variable}"
        text = text.replace(f"\n{lines[0]}\n", f"\n{variable}='{value}'\n")
    script = into / name
    script.write_text(text)
    script.chmod(0o755)
    return script


def uuid(index: int) -> str:
    """UUID of a simulated GPU."""
    return f"GPU-00000000-0000-0000-0000-{index:012d}"


@dataclass
class GpuNode:
    """This machine as a node with two simulated GPUs.

    Attributes:
        folder: for everything below.
        library: the simulated library's.
        environment: of processes on the node, but for the GPUs.
    """

    folder: Path
    library: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """What the driver remembers of limits."""
        return self.folder / "driver"

    @property
    def leases(self) -> Path:
        return self.folder / "leases"

    def lease_names(self) -> list[str]:
        return sorted(path.name for path in self.leases.iterdir()) if self.leases.exists() else []

    def settings(self, **values: object) -> dict[str, str]:
        """The variables under which GPUs are found; settings of the simulated library replaced."""
        own = {"POWER": "90;90", "LIMITS": f"{LEAST_W}:{MOST_W}:{DEFAULT_W}", "STATE": self.state}
        return simulated_nvml.settings(self.library, **{**own, **values})

    def changes_w(self) -> list[tuple[int, float]]:
        """Every limit that the driver has accepted: GPU and W, in order."""
        if not self.state.exists():
            return []
        rows = (line.split() for line in self.state.read_text().splitlines())
        return [(int(gpu), float(limit_mw) / 1e3) for _, gpu, _, limit_mw, _ in rows]

    def limits_w(self) -> list[float]:
        """The limit of each GPU now."""
        now_w = dict.fromkeys(range(2), float(DEFAULT_W)) | dict(self.changes_w())
        return list(now_w.values())

    def set_limit(self, gpu: int, limit_w: float) -> None:
        """Set a limit as somebody else would."""
        with self.state.open("a") as stream:
            stream.write(f"{socket.gethostname()} {gpu} {time.monotonic():.6f} {limit_w * 1e3:.0f} 1\n")

    def write_lease(self, gpu: int = 0, **changes: object) -> Path:
        """What a killed job has left, some of it replaced."""
        content: dict[str, object] = {
            "node": socket.gethostname(),
            "gpu": uuid(gpu),
            "job_id": "7",
            "uid": os.getuid(),
            "pid": 2**22 + 1,  # more than the kernel gives
            "started_ticks": 1,
            "pid_space": own_space(),
            "boot_id": boot_id(),
            "before_w": 250.0,
            "before_enforced_w": 250.0,
            "cap_w": float(CAP_W),
        }
        lease = Lease.model_validate({**content, **changes})
        self.leases.mkdir(exist_ok=True)
        self.leases.chmod(0o1777)
        path = self.leases / lease.name
        path.write_text(lease.model_dump_json())
        return path

    def command(self, script: str) -> Path:
        """A program of the site that sets limits; `python` is this one, which finds the GPUs."""
        path = self.folder / "set-limit"
        settings = self.settings()
        names = " ".join(f"{name}='{value}'" for name, value in settings.items())
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\nexec env {names} "{sys.executable}" "$@"\n')
        path.write_text(script.replace("{python}", f"/usr/bin/env -S {python}"))
        for program in (python, path):
            program.chmod(0o755)
        return path

    def guard(
        self,
        work: str,
        *,
        cap_w: int | None = CAP_W,
        job_id: str = "12",
        power_limits: Mapping[str, object] | None = None,
        gpus: str = "0,1",
        python: Sequence[str] = (sys.executable, "-m", "shardwatt.power.limits.guard"),
        **settings: object,
    ) -> Guard:
        """Start a guard in a work folder of this name.

        Args:
            cap_w: limit in W; None: none.
            job_id: of the job.
            power_limits: the site's, but for the leases' folder.
            gpus: CUDA_VISIBLE_DEVICES.
            python: what starts it.
            settings: of the simulated library.
        """
        folder = self.folder / work
        folder.mkdir(exist_ok=True)
        words = self.guard_words(folder, cap_w, job_id, power_limits, ranks=len(gpus.split(",")))
        process = subprocess.Popen(
            [*python, *words],
            env={**self.environment, **self.settings(**settings), "CUDA_VISIBLE_DEVICES": gpus},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return Guard(process, folder)

    def guard_words(
        self,
        folder: Path,
        cap_w: int | None = CAP_W,
        job_id: str = "12",
        power_limits: Mapping[str, object] | None = None,
        *,
        ranks: int = 2,
    ) -> list[str]:
        """A guard's arguments; they are explained in `guard`."""
        limits = {"leases": str(self.leases), **(power_limits or {"set_by": "nvml"})}
        return [
            *("--gpu-type", GPU_TYPE, "--ranks-per-node", str(ranks), "--folder", str(folder)),
            *("--power-limits", json.dumps(limits), "--job-id", job_id),
            *(() if cap_w is None else ("--cap-w", str(cap_w))),
        ]

    def restore(
        self, *words: str, environment: dict[str, str] | None = None, **settings: object
    ) -> subprocess.CompletedProcess[str]:
        """Run `shardwatt restore-power-limits`."""
        return subprocess.run(
            [sys.executable, "-m", "shardwatt", "restore-power-limits", "--leases", str(self.leases), *words],
            env={**self.environment, **self.settings(**settings), **(environment or {})},
            capture_output=True,
            text=True,
        )

    def stop(self) -> None:
        """Kill what a failed test has left."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stderr):
                if pipe is not None:
                    pipe.close()


@dataclass
class Guard:
    """A guard that was started."""

    process: subprocess.Popen[str]
    folder: Path

    def begun(self) -> LimitFile:
        """What it has set, once it has."""
        await_true(lambda: limit_path(self.folder, 0).exists() or self.process.poll() is not None)
        assert limit_path(self.folder, 0).exists(), self.process.communicate()[1]
        return read(LimitFile, limit_path(self.folder, 0))

    def refusal(self) -> str:
        """Why it has set nothing; it has ended."""
        file = self.begun()
        assert self.process.wait(_PATIENCE_S) == 0
        assert file.refusal is not None, file
        return file.refusal

    def signalled(self, number: signal.Signals) -> LimitEndFile:
        """Send it a signal, and wait for what it says."""
        self.process.send_signal(number)
        await_true(lambda: limit_end_path(self.folder, 0).exists())
        return read(LimitEndFile, limit_end_path(self.folder, 0))

    def killed(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended(self, code: int = 0) -> LimitEndFile:
        """Close its standard input and wait."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(_PATIENCE_S) == code
        return read(LimitEndFile, limit_end_path(self.folder, 0))


def await_true(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, f"waited in vain for {_PATIENCE_S:g} s"
        time.sleep(0.02)
