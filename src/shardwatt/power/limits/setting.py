"""Power limits of GPUs: read through NVML, set through NVML or by the site's own command, all or none."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from shardwatt.power.meters.gpus import Gpu
from shardwatt.sitepower import PowerLimits
from shardwatt.units import MILLI

#: Limits closer than this are the same: drivers round.
TOLERANCE_W = 1.0

#: Longest time in s until a limit that was set must be enforced, and between looks.
_SETTLE_S = 2.0
_LOOK_S = 0.02

#: Longest time in s that the site's command may take.
_COMMAND_TIMEOUT_S = 60.0

#: Characters of the command's output that a message quotes.
_QUOTED = 300

#: What the site's command is told of this process's environment: nothing secret.
_PASSED_ON = ("PATH", "SLURM_CONF", "SLURM_JOB_ID")


class LimitError(Exception):
    """A limit cannot be read or set, or is not enforced; with the numbers."""


class NotBackError(LimitError):
    """A limit that was changed is not what it was before."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The power limits of one GPU as the driver tells them, in W.

    Attributes:
        set_w: the one that was set last.
        enforced_w: the one that holds: the lowest of all that there are.
        least_w: lowest that can be set.
        most_w: highest that can be set.
        default_w: the one after the driver is loaded.
    """

    set_w: float
    enforced_w: float
    least_w: float
    most_w: float
    default_w: float

    def __str__(self) -> str:
        return self.told("found")

    def told(self, when: str) -> str:
        """All numbers, for a message; `when` says what the enforced limit is that of."""
        return (
            f"{when} at {self.enforced_w:g} W, takes {self.least_w:g} to {self.most_w:g} W, "
            f"default {self.default_w:g} W"
        )


#: Sets the limit of GPUs, in W; raises LimitError.
SetLimit = Callable[[Sequence[Gpu], float], None]


def is_near(found_w: float, wanted_w: float) -> bool:
    """Whether two limits in W are the same but for rounding."""
    return abs(found_w - wanted_w) < TOLERANCE_W


def read_limits(gpu: Gpu) -> Limits:
    """Read the limits of a GPU.

    Raises:
        LimitError: the driver does not tell one.
    """
    least_mw, most_mw = _ask(gpu, "limits' range", pynvml.nvmlDeviceGetPowerManagementLimitConstraints)
    return Limits(
        set_w=_ask(gpu, "limit", pynvml.nvmlDeviceGetPowerManagementLimit) * MILLI,
        enforced_w=enforced_w(gpu),
        least_w=least_mw * MILLI,
        most_w=most_mw * MILLI,
        default_w=_ask(gpu, "default limit", pynvml.nvmlDeviceGetPowerManagementDefaultLimit) * MILLI,
    )


def enforced_w(gpu: Gpu) -> float:
    """The limit in W that holds.

    Raises:
        LimitError: the driver does not tell it.
    """
    limit_mw: int = _ask(gpu, "enforced limit", pynvml.nvmlDeviceGetEnforcedPowerLimit)
    return limit_mw * MILLI


def check_range(gpus: Sequence[Gpu], limits: Sequence[Limits], cap_w: float) -> None:
    """Make sure that a limit can be set on every GPU; changes nothing.

    Raises:
        LimitError: it is outside of what one takes.
    """
    if any(not own.least_w <= cap_w <= own.most_w for own in limits):
        raise LimitError(
            f"a limit of {cap_w:g} W is outside of what the driver takes ({_numbers(gpus, limits)}); use a "
            "cap within that; nothing was changed"
        )


def prove_way_back(gpus: Sequence[Gpu], found: Sequence[Limits], cap_w: float, set_limit: SetLimit) -> None:
    """Set the limits that were found once more: what cannot be set now could not be set back later.

    Args:
        gpus: the job's GPUs of this node.
        found: their limits.
        cap_w: the limit in W that is wanted next, for the message.
        set_limit: `setter` gives it.

    Raises:
        LimitError: a limit that was found is refused; nothing was changed.
        NotBackError: it was accepted, and another one is enforced now.
    """
    for limit_w, own in _by_limit(gpus, found).items():
        try:
            set_limit(own, limit_w)
        except LimitError as problem:
            raise LimitError(
                f"a limit of {cap_w:g} W was not set, since {limit_w:g} W, which was found, could not be set "
                f"back: {problem} ({_numbers(gpus, found)}); nothing was changed"
            ) from None
    try:
        _await_enforced(gpus, [own.enforced_w for own in found], lambda: False)
    except LimitError as problem:
        raise NotBackError(
            f"a limit of {cap_w:g} W was not set, since limits are not what they are set to: {problem} "
            f"({_numbers(gpus, found)})"
        ) from None


def set_limits(
    gpus: Sequence[Gpu],
    found: Sequence[Limits],
    cap_w: float,
    set_limit: SetLimit,
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> list[float]:
    """Set a limit on every GPU and wait until it is enforced; on any trouble set all back.

    Args:
        gpus: the job's GPUs of this node.
        found: their limits before, to which they are set back.
        cap_w: the limit in W.
        set_limit: `setter` gives it.
        is_over: asked while it waits: whether to give up.

    Returns:
        The enforced limit of each GPU in W, as read back.

    Raises:
        LimitError: refused, or not enforced; all GPUs are as they were found.
        NotBackError: the same, and one could not be set back.
    """
    try:
        set_limit(gpus, cap_w)
        return _await_enforced(gpus, [cap_w] * len(gpus), is_over)
    except LimitError as problem:
        said = f"{problem} ({_numbers(gpus, found)})"
        try:
            put_back(gpus, found, set_limit)
        except LimitError as worse:
            raise NotBackError(f"{said}; and then {worse}") from None
        raise LimitError(f"{said}; all GPUs of the node are as they were found") from None


def put_back(gpus: Sequence[Gpu], found: Sequence[Limits], set_limit: SetLimit) -> list[float]:
    """Set GPUs back to the limits that were found on them, as many as possible, and wait for that.

    Args:
        gpus: which.
        found: their limits before.
        set_limit: `setter` gives it.

    Returns:
        The enforced limit of each GPU in W, as read back.

    Raises:
        NotBackError: one is not what it was.
    """
    problems: list[str] = []
    for limit_w, own in _by_limit(gpus, found).items():
        changed = [gpu for gpu in own if _differs(gpu, limit_w)]
        problems += _set_what_can_be(changed, limit_w, set_limit)
    try:
        return _await_enforced(gpus, [own.enforced_w for own in found], lambda: False)
    except LimitError as problem:
        said = "; ".join([*problems, str(problem)])
        before = _numbers(gpus, found, "before")
        raise NotBackError(f"limits could not be set back: {said} ({before})") from None


def _by_limit(gpus: Sequence[Gpu], found: Sequence[Limits]) -> dict[float, list[Gpu]]:
    """GPUs by the limit in W that was found: one call for each, as a site's command may take its time."""
    grouped: dict[float, list[Gpu]] = {}
    for gpu, own in zip(gpus, found, strict=True):
        grouped.setdefault(own.set_w, []).append(gpu)
    return grouped


def _set_what_can_be(gpus: Sequence[Gpu], limit_w: float, set_limit: SetLimit) -> list[str]:
    """Set a limit, on each GPU alone if it is refused for all; return what was refused."""
    if not gpus:
        return []
    try:
        set_limit(gpus, limit_w)
    except LimitError as problem:
        if len(gpus) == 1:
            return [str(problem)]
        return [said for gpu in gpus for said in _set_what_can_be([gpu], limit_w, set_limit)]
    return []


def setter(power_limits: PowerLimits) -> SetLimit:
    """What sets limits at a site: NVML, or its own command."""
    if power_limits.command is None:
        return _through_nvml
    words = power_limits.command

    def through_command(gpus: Sequence[Gpu], limit_w: float) -> None:
        _run(command_words(words, gpus, limit_w))

    return through_command


def command_words(words: Sequence[str], gpus: Sequence[Gpu], limit_w: float) -> list[str]:
    """The site's command for some GPUs and a limit in W, which it gets as a whole number."""
    uuids = ",".join(str(gpu.device.uuid) for gpu in gpus)
    return [word.replace("{watts}", str(round(limit_w))).replace("{gpus}", uuids) for word in words]


def _through_nvml(gpus: Sequence[Gpu], limit_w: float) -> None:
    for gpu in gpus:
        try:
            pynvml.nvmlDeviceSetPowerManagementLimit(gpu.handle, round(limit_w / MILLI))
        except pynvml.NVMLError as error:
            advice = ""
            if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
                advice = "; where only root may set it, the site's power_limits need a command or a prolog"
            raise LimitError(f"{gpu}: the driver refused a limit of {limit_w:g} W: {error}{advice}") from None


def _run(words: Sequence[str]) -> None:
    """Run the site's command, without a shell.

    Raises:
        LimitError: it is not there, takes too long, or fails; in its own words.
    """
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    shown = " ".join(words)
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=passed_on | {"LC_ALL": "C"},
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as problem:
        raise LimitError(f"`{shown}` cannot be run: {problem.strerror}; see power_limits.command") from None
    try:
        said, _ = process.communicate(timeout=_COMMAND_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # What sudo has made root's is not ours to kill.
        with contextlib.suppress(PermissionError):
            process.kill()
        raise LimitError(
            f"`{shown}` did not end in {_COMMAND_TIMEOUT_S:g} s; with sudo it may wait for a password: give "
            "it the option -n"
        ) from None
    if process.returncode != 0:
        quoted = "".join(letter if letter.isprintable() else " " for letter in said[-_QUOTED:]).strip()
        raise LimitError(
            f"`{shown}` ended with exit code {process.returncode} and said: {quoted or 'nothing'}"
        )


def _await_enforced(
    gpus: Sequence[Gpu], wanted_w: Sequence[float], is_over: Callable[[], bool]
) -> list[float]:
    """Wait until limits in W are enforced, and return them: some drivers need a moment."""
    until_s = time.monotonic() + _SETTLE_S
    while True:
        now_w = [enforced_w(gpu) for gpu in gpus]
        if all(is_near(now, wanted) for now, wanted in zip(now_w, wanted_w, strict=True)):
            return now_w
        if time.monotonic() > until_s or is_over():
            break
        time.sleep(_LOOK_S)
    raise LimitError(
        "; ".join(
            f"{gpu}: asked for {wanted:g} W, and {now:g} W are enforced"
            for gpu, wanted, now in zip(gpus, wanted_w, now_w, strict=True)
            if not is_near(now, wanted)
        )
    )


def _numbers(gpus: Sequence[Gpu], limits: Sequence[Limits], when: str = "found") -> str:
    return "; ".join(f"{_named(gpu)} {own.told(when)}" for gpu, own in zip(gpus, limits, strict=True))


def _differs(gpu: Gpu, limit_w: float) -> bool:
    try:
        return not is_near(_ask(gpu, "limit", pynvml.nvmlDeviceGetPowerManagementLimit) * MILLI, limit_w)
    except LimitError:
        return True


def _ask(gpu: Gpu, what: str, call: Callable[[Any], Any]) -> Any:
    try:
        return call(gpu.handle)
    except pynvml.NVMLError as error:
        raise LimitError(f"{gpu}: the driver does not tell its power {what}: {error}") from None


def _named(gpu: Gpu) -> str:
    return f"{gpu} ({gpu.device.name})"
