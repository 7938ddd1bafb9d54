"""Rules that samples and joules must obey. A number that breaks one stands, with the violation beside it.

Every code is explained in docs/energy-method.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from shardwatt.power.coverage import density
from shardwatt.power.curve import COUNTERS, CounterStoodError, Interval, NoJoulesError, StoodStillError
from shardwatt.power.nodetrace import DeviceTrace, NodeTrace
from shardwatt.power.states import REASONS
from shardwatt.power.trace import Trace, union
from shardwatt.readings import KNOWN, Device, Method, Violation

#: Shorter windows are marked: counters are noisy under 2 s and stable from 5 s (ML.ENERGY's measurements;
#: with a tick and a period of 0.1 s two borders are then at most 8 % of the joules).
SHORT_WINDOW_S = 5.0
#: In a longer window every device must have drawn something: below, a counter may rightly stand still.
NO_ENERGY_S = 2.0
#: Joules may be above limit x time by so much: sensors err, and limits hold on average only.
ABOVE_LIMIT = 1.1
#: Difference between a counter and the integral of sampled power, as a share: this project's own threshold.
#: (nvml.h's +-5 % for nvmlDeviceGetPowerUsage is about Fermi and Kepler; it says nothing of newer GPUs.)
COUNTER_OVER_INTEGRAL = 0.05
#: Share of a window's samples that may miss: of an integral, as much time is then made up between samples.
MISSING_SAMPLES = 0.05
#: Difference between nodes' wall clocks in s: with NTP it is milliseconds, and logs count whole seconds.
CLOCK_SKEW_S = 1.0
#: Share of samples with clocks held back that is noise: repeats done well agree to 0.2 to 1 %.
THROTTLED = 0.01

#: Reasons for which a GPU is slower than it is set to be, and for which its place is to blame.
TROUBLE = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")

#: Cases of one violation that its message names.
_NAMED = 3


def violation(code: str, cases: Iterable[str], rule: str) -> list[Violation]:
    """One violation for all cases of it; none without a case.

    Args:
        code: of the rule.
        cases: what was found, each with its numbers.
        rule: what was expected.
    """
    found = list(cases)
    if not found:
        return []
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return [Violation(code=code, message=f"{'; '.join(found[:_NAMED])}{more}; expected {rule}")]


def check_samples(trace: Trace, window: Interval) -> list[Violation]:
    """Rules about how a job was sampled.

    Args:
        trace: all samples of the job.
        window: start and stop in s of node 0's `time.monotonic()`.
    """
    # Without joules there is nothing to doubt, and the mean power of an estimate bridges its gaps.
    metered = [
        (node, device)
        for node in trace.nodes
        if node.status in KNOWN
        for device in node.devices
        if device.curve is not None and device.curve.method is not Method.ESTIMATE
    ]
    return [
        *violation(
            "counter_ran_backwards",
            _falls(metered, window[0]),
            "a counter that only grows: was the driver loaded anew?",
        ),
        *violation(
            "gap",
            _gaps(metered, window),
            "a sample every period, and none further apart than ten",
        ),
        *violation(
            "samples_missing",
            _missing(metered, window),
            f"at least {1 - MISSING_SAMPLES:.0%} of the samples that were due in the window",
        ),
        *violation(
            "sensor_failed",
            (reason for node in trace.nodes for reason in node.failures),
            "sensors that answer to the end",
        ),
        *violation(
            "shared_gpu",
            (
                f"at the end other processes computed on {told}"
                for node in trace.nodes
                for told in node.strangers
            ),
            "GPUs that are the job's alone: their joules are among these",
        ),
        *violation("clock_skew", _skews(trace.nodes), f"wall clocks within {CLOCK_SKEW_S:g} s (NTP)"),
        *violation(
            "throttled",
            _throttled(trace.devices, window),
            "GPUs that are kept back by neither heat nor their supply",
        ),
    ]


def check_joules(
    devices: Sequence[DeviceTrace],
    window: Interval,
    job: Sequence[Interval],
    limits_w: Mapping[Device, float],
) -> list[Violation]:
    """Rules about the joules of the window, and of the job.

    Args:
        devices: of the job, all that were read.
        window: start and stop in s of node 0's `time.monotonic()`.
        job: what counts of the job, likewise.
        limits_w: power limit of each device whose limit is known, in W.
    """
    length_s = window[1] - window[0]
    metered = [device for device in devices if device.curve and device.curve.method is not Method.ESTIMATE]
    short = [f"the window lasted {length_s:.3g} s"] if length_s < SHORT_WINDOW_S else []
    if not any(device.curve for device in devices):
        short = []
    return [
        *violation("short_window", short, f"at least {SHORT_WINDOW_S:g} s"),
        *violation("no_energy", _without_energy(metered, window), "more than 0 J from a device that answers"),
        *violation(
            "counter_stood", _standing(metered, window), "a counter that moves as long as power is on"
        ),
        *violation(
            "power_above_limit",
            [
                *_above_limit(metered, "the window", [window], limits_w),
                *_above_limit(metered, "the job", union(job), limits_w),
            ],
            f"at most limit x time x {ABOVE_LIMIT:g}",
        ),
        *violation(
            "counter_differs_from_integral",
            _differing(metered, window),
            f"a difference within {COUNTER_OVER_INTEGRAL:.0%}, or within what borders leave open",
        ),
    ]


def name_of(device: Device) -> str:
    """A device in a message."""
    return f"device {device.index} of {device.node}"


def _when(at_s: float) -> str:
    return f"{abs(at_s):.3g} s {'after' if at_s >= 0 else 'before'} the window's begin"


_Metered = Sequence[tuple[NodeTrace, DeviceTrace]]


def _falls(metered: _Metered, origin_s: float) -> Iterator[str]:
    for _, device in metered:
        if device.curve and device.curve.method in COUNTERS and len(device.curve.ran_backwards_s):
            when = _when(device.curve.ran_backwards_s[0] - origin_s)
            yield f"the counter of {name_of(device.device)} ran backwards {when}"


def _gaps(metered: _Metered, window: Interval) -> Iterator[str]:
    for _, device in metered:
        gaps = density(device, [window]).gaps
        if gaps:
            start_s, stop_s = max(gaps, key=lambda gap: gap[1] - gap[0])
            yield (
                f"gaps between samples of {name_of(device.device)}: {len(gaps)}, the longest of "
                f"{stop_s - start_s:.3g} s {_when(start_s - window[0])}"
            )


def _missing(metered: _Metered, window: Interval) -> Iterator[str]:
    for node, device in metered:
        if node.asked_period_s is None:
            continue
        due = int((window[1] - window[0]) / node.asked_period_s)
        found = density(device, [window]).samples
        # One is nothing: where the window begins between two deadlines is chance.
        if found < due * (1 - MISSING_SAMPLES) and due - found > 1:
            yield f"{name_of(device.device)} has {found} of {due} samples"


def _skews(nodes: Sequence[NodeTrace]) -> Iterator[str]:
    for node in nodes:
        if node.wall_ahead_s is not None and abs(node.wall_ahead_s) > CLOCK_SKEW_S:
            apart = f"{abs(node.wall_ahead_s):.3g} s {'ahead of' if node.wall_ahead_s > 0 else 'behind'}"
            yield (
                f"the wall clock of {node.name} is {apart} that of rank 0's node: times in logs do not agree "
                "(joules do not use it)"
            )


def _throttled(devices: Sequence[DeviceTrace], window: Interval) -> Iterator[str]:
    bits = {name: bit for bit, name in REASONS.items()}
    for device in devices:
        values = device.columns["throttle_reasons"][device.between(*window)]
        known = values[~np.isnan(values)].astype(np.int64)
        shares = {name: float(np.mean((known & bits[name]) != 0)) for name in TROUBLE} if len(known) else {}
        told = [f"{name} in {share:.1%}" for name, share in shares.items() if share > THROTTLED]
        if told:
            yield f"{name_of(device.device)}: {', '.join(told)} of the window's samples"


def _without_energy(metered: Sequence[DeviceTrace], window: Interval) -> Iterator[str]:
    if window[1] - window[0] <= NO_ENERGY_S:
        return
    for device in metered:
        try:
            device.joules([window])
        except StoodStillError as problem:
            yield f"{name_of(device.device)}: {problem}"
        except NoJoulesError:
            continue


def _standing(metered: Sequence[DeviceTrace], window: Interval) -> Iterator[str]:
    for device in metered:
        try:
            device.joules([window])
        except CounterStoodError as problem:
            yield f"{name_of(device.device)}: {problem}"
        except NoJoulesError:
            continue


def _above_limit(
    metered: Sequence[DeviceTrace], what: str, intervals: Sequence[Interval], limits_w: Mapping[Device, float]
) -> Iterator[str]:
    length_s = sum(stop - start for start, stop in intervals)
    for device in metered:
        part = device.part(intervals)
        limit_w = limits_w.get(device.device)
        if limit_w is None or part.joules is None or part.uncertainty_j is None:
            continue
        if part.joules - part.uncertainty_j > limit_w * length_s * ABOVE_LIMIT:
            yield (
                f"{name_of(device.device)} drew {part.joules:.6g} J in the {length_s:.4g} s of {what}, "
                f"{part.joules / length_s:.4g} W on average, under a limit of {limit_w:g} W"
            )


def _differing(metered: Sequence[DeviceTrace], window: Interval) -> Iterator[str]:
    for device in metered:
        part, integral = device.part([window]), device.integral_j([window])
        if part.joules is None or part.uncertainty_j is None or integral is None:
            continue
        integral_j, open_j = integral
        difference_j = abs(part.joules - integral_j)
        if difference_j > max(COUNTER_OVER_INTEGRAL * integral_j, part.uncertainty_j + open_j):
            yield (
                f"{name_of(device.device)}: its counter rose by {part.joules:.6g} J and its sampled power "
                f"integrates to {integral_j:.6g} J ({part.joules / integral_j - 1:+.1%})"
            )
