"""The guard of a node's power limits: a process of its own that sets them, and lives to set them back.

    python -m shardwatt.power.limits.guard --gpu-type JSON --ranks-per-node 2 --folder DIR
        --power-limits JSON --job-id 123 --cap-w 175

It sets back what killed jobs have left on the job's GPUs, sets the cap, writes limit-K.json, and waits for
the end of its standard input, which comes when its supervisor wants it or is gone. Then it reads the limits
again, sets them back and writes limit-end-K.json. A signal that ends a job has it set them back at once:
Slurm kills it some tenths of a second later. Without --cap-w it only sets back what others have left.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from types import FrameType

from shardwatt.devices import own_devices
from shardwatt.errors import EXIT_CONFIGURATION, CellFailure
from shardwatt.locks import boot_id
from shardwatt.power.limits.files import (
    LimitEnd,
    LimitEndFile,
    LimitFile,
    LimitSet,
    limit_end_path,
    limit_path,
)
from shardwatt.power.limits.lease import Lease, LeaseError, Leases, open_leases
from shardwatt.power.limits.mend import mend_own
from shardwatt.power.limits.setting import (
    LimitError,
    Limits,
    NotBackError,
    SetLimit,
    check_range,
    command_words,
    enforced_w,
    is_near,
    prove_way_back,
    put_back,
    read_limits,
    set_limits,
    setter,
)
from shardwatt.power.meters.gpus import Gpu, GpuError, nvml, open_gpus
from shardwatt.power.nodeoptions import node_options
from shardwatt.power.process import own_space, start_ticks
from shardwatt.recordfiles import write
from shardwatt.sitepower import PowerLimits

#: Signals that ask a process to end, or would end it without a word: whatever a site has Slurm send.
_ENDING = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)

#: After a signal it stays for so long, in s, for its supervisor to end first and say why.
_LINGER_S = 20.0


class Asked:
    """The first signal that asks this process to end; waiting is cut short by it.

    Attributes:
        signal: its name; None while none has come.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake)
        for number in _ENDING:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number).name

    def wait_for_input_to_end(self) -> None:
        """Wait until standard input ends or a signal comes, whichever is first."""
        while self.signal is None:
            readable, _, _ = select.select([sys.stdin, self._woken], [], [])
            if sys.stdin in readable and not os.read(sys.stdin.fileno(), 4096):
                return

    def linger(self) -> None:
        """After a signal, wait some time for standard input to end."""
        until_s = time.monotonic() + _LINGER_S
        while (left_s := until_s - time.monotonic()) > 0:
            readable, _, _ = select.select([sys.stdin], [], [], left_s)
            if readable and not os.read(sys.stdin.fileno(), 4096):
                return


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the guard; the exit code is 1 if it was ended early or its folder cannot be written, 78 if too
    few GPUs are here."""
    asked = Asked()
    options = _options(arguments)
    try:
        selectors = own_devices(options.gpu_type, options.ranks_per_node, os.environ)
    except CellFailure as problem:
        print(f"guard of node {options.node_index}: {problem}", file=sys.stderr)
        return EXIT_CONFIGURATION
    try:
        with nvml():
            _Guard(options, open_gpus(selectors), asked).run()
    except GpuError as problem:
        _cannot_open(options, str(problem))
    except OSError as problem:
        print(f"guard of node {options.node_index}: {problem}", file=sys.stderr)
        return 1
    if asked.signal is None:
        return 0
    asked.linger()
    return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = node_options("shardwatt.power.limits.guard")
    parser.add_argument("--power-limits", type=PowerLimits.model_validate_json, required=True, metavar="JSON")
    parser.add_argument("--job-id", required=True)
    parser.add_argument("--cap-w", type=int, help="limit of each GPU; without it none is set")
    options = parser.parse_args(arguments)
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", options.job_id) is None:
        parser.error(f"--job-id: found {options.job_id!r}; expected letters, digits, _ . and -")
    return options


def _cannot_open(options: argparse.Namespace, why: str) -> None:
    """Say that the GPUs do not answer: that ends a cell with a cap only."""
    with_cap = options.cap_w is not None
    file = LimitFile(
        node=socket.gethostname(),
        limits=[],
        refusal=why if with_cap else None,
        notes=[] if with_cap else [f"power limits are not known: {why}"],
    )
    write(file, limit_path(options.folder, options.node_index))


class _Guard:
    def __init__(self, options: argparse.Namespace, gpus: list[Gpu], asked: Asked) -> None:
        self._cap_w: int | None = options.cap_w
        self._power_limits: PowerLimits = options.power_limits
        self._job_id: str = options.job_id
        self._begin = limit_path(options.folder, options.node_index)
        self._end = limit_end_path(options.folder, options.node_index)
        self._gpus = gpus
        self._asked = asked
        self._node = socket.gethostname()
        self._notes: list[str] = []

    def run(self) -> None:
        by_prolog = self._power_limits.set_by == "prolog"
        try:
            if self._cap_w is None:
                self._leave_alone(by_prolog=by_prolog)
            elif by_prolog:
                self._look_on(self._cap_w)
            else:
                self._keep(self._cap_w)
        except (LimitError, LeaseError) as problem:
            # What a signal has cut short is no refusal.
            if self._asked.signal is None:
                file = LimitFile(node=self._node, limits=[], refusal=str(problem), notes=self._notes)
                write(file, self._begin)

    def _leave_alone(self, *, by_prolog: bool) -> None:
        """Set back what killed jobs have left, and nothing else: a cell without a cap."""
        if not by_prolog and self._power_limits.leases.exists():
            with open_leases(self._power_limits.leases) as leases:
                self._notes += mend_own(self._gpus, leases, setter(self._power_limits))
        try:
            found = [read_limits(gpu) for gpu in self._gpus]
        except LimitError as problem:
            self._notes.append(str(problem))
            found = []
        self._notes += [
            f"{gpu}: its power limit is {limits.enforced_w:g} W, the driver's default {limits.default_w:g} W"
            for gpu, limits in zip(self._gpus, found, strict=False)
            if not is_near(limits.enforced_w, limits.default_w)
        ]
        self._write_begin(found, [limits.enforced_w for limits in found])

    def _look_on(self, cap_w: int) -> None:
        """See that Slurm's prolog has set the cap, wait, and see whether it still stands."""
        found = [read_limits(gpu) for gpu in self._gpus]
        wrong = [
            f"{gpu}: expected {cap_w} W to be enforced, set by Slurm's prolog ({limits})"
            for gpu, limits in zip(self._gpus, found, strict=True)
            if not is_near(limits.enforced_w, cap_w)
        ]
        if wrong:
            raise LimitError(
                f"{'; '.join(wrong)}; see that the prolog is installed and reads this job's comment "
                "(docs/power-caps.md), and that GPUs are in persistence mode: without it a limit falls back "
                "as soon as the prolog's nvidia-smi has ended"
            )
        self._write_begin(found, [limits.enforced_w for limits in found])
        self._asked.wait_for_input_to_end()
        self._write_end([_read(gpu) for gpu in self._gpus], [None] * len(self._gpus), None)

    def _keep(self, cap_w: int) -> None:
        """Set the cap, wait until the run is over, and set the limits back."""
        set_limit = setter(self._power_limits)
        with open_leases(self._power_limits.leases) as leases:
            self._notes += mend_own(self._gpus, leases, set_limit)
            found = [read_limits(gpu) for gpu in self._gpus]
            check_range(self._gpus, found, cap_w)
            own = [self._lease(gpu, limits, cap_w) for gpu, limits in zip(self._gpus, found, strict=True)]
            now_w = self._set(leases, own, found, cap_w, set_limit)
            after_w: list[float | None] = [None] * len(self._gpus)
            try:
                self._write_begin(found, now_w)
                self._asked.wait_for_input_to_end()
                if self._asked.signal is None:
                    after_w = [_read(gpu) for gpu in self._gpus]
            finally:
                back_w, problem = self._put_back(found, set_limit)
                if problem is None:
                    _remove(leases, own)
            self._write_end(after_w, back_w, problem)

    def _set(
        self, leases: Leases, own: list[Lease], found: list[Limits], cap_w: int, set_limit: SetLimit
    ) -> list[float]:
        """Set the cap, each GPU's limit noted before; the enforced limits in W."""
        try:
            for lease in own:
                leases.write(lease)
            self._make_sure_of_being_alone(leases, own)
            prove_way_back(self._gpus, found, cap_w, set_limit)
            return set_limits(
                self._gpus, found, cap_w, set_limit, is_over=lambda: self._asked.signal is not None
            )
        except NotBackError:
            # Its leases stay: the next cell mends it, or an Epilog.
            raise
        except (LimitError, LeaseError):
            _remove(leases, own)
            raise

    def _put_back(self, found: list[Limits], set_limit: SetLimit) -> tuple[list[float | None], str | None]:
        """Set the limits back; the enforced ones in W, and what is wrong with them."""
        try:
            return [*put_back(self._gpus, found, set_limit)], None
        except LimitError as failure:
            problem = f"{failure}; to mend it, {self._how_to_mend(found)}"
            print(problem, file=sys.stderr, flush=True)
            return [_read(gpu) for gpu in self._gpus], problem

    def _make_sure_of_being_alone(self, leases: Leases, own: list[Lease]) -> None:
        """Two that begin at a time see each other's leases here, since both have written theirs."""
        names, uuids = {lease.name for lease in own}, {lease.gpu for lease in own}
        for found in leases.of_node(self._node):
            other = found.lease
            if other is not None and found.name not in names and other.gpu in uuids and other.is_held:
                raise LimitError(
                    f"{other.gpu}: job {other.job_id} of user {other.uid} sets a power limit on it too; "
                    "expected GPUs of this job alone; nothing was changed"
                )

    def _lease(self, gpu: Gpu, limits: Limits, cap_w: int) -> Lease:
        started_ticks = start_ticks(os.getpid())
        assert started_ticks is not None, "a process sees itself in /proc"
        return Lease(
            node=self._node,
            gpu=str(gpu.device.uuid),
            job_id=self._job_id,
            uid=os.getuid(),
            pid=os.getpid(),
            started_ticks=started_ticks,
            pid_space=own_space(),
            boot_id=boot_id(),
            before_w=limits.set_w,
            before_enforced_w=limits.enforced_w,
            cap_w=cap_w,
        )

    def _how_to_mend(self, found: list[Limits]) -> str:
        words = self._power_limits.command or ["sudo", "nvidia-smi", "-i", "{gpus}", "-pl", "{watts}"]
        commands = [
            " ".join(command_words(words, [gpu], limits.set_w))
            for gpu, limits in zip(self._gpus, found, strict=True)
        ]
        return f"on {self._node}: {'; '.join(commands)}"

    def _write_begin(self, found: list[Limits], now_w: list[float]) -> None:
        limits = [
            LimitSet(device=gpu.device, before_w=own.enforced_w, enforced_w=now)
            for gpu, own, now in zip(self._gpus, found, now_w, strict=False)
        ]
        write(LimitFile(node=self._node, limits=limits, notes=self._notes), self._begin)

    def _write_end(
        self, after_w: list[float | None], back_w: list[float | None], problem: str | None
    ) -> None:
        limits = [
            LimitEnd(uuid=str(gpu.device.uuid), after_w=after, restored_w=back)
            for gpu, after, back in zip(self._gpus, after_w, back_w, strict=True)
        ]
        write(LimitEndFile(limits=limits, signal=self._asked.signal, problem=problem), self._end)


def _remove(leases: Leases, own: Sequence[Lease]) -> None:
    for lease in own:
        leases.remove(lease.name)


def _read(gpu: Gpu) -> float | None:
    try:
        return enforced_w(gpu)
    except LimitError:
        return None


if __name__ == "__main__":
    sys.exit(main())
