"""What a record says of energy, as columns: of the cell, and a row for each of its devices."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from shardwatt.power.rules import TROUBLE
from shardwatt.readings import Energy, Idle, LimitOfDevice, Mean, Method, PowerCap, Reading, Utilisation
from shardwatt.records import Record

Row = dict[str, Any]

#: Parts of a device's energy, by the beginning of their columns' names.
_PARTS = {
    "energy": "window",
    "prefill": "prefill",
    "walk": "walk",
    "decode": "decode",
    "between": "between",
    "job_energy": "job",
}


def energy_columns(energy: Energy) -> Row:
    """Joules of a cell with what they are worth, its ratios, baselines and violations."""
    window, coverage = energy.window, energy.window.coverage
    uuids = [one.device.uuid for one in energy.devices]
    return {
        "energy_j": window.joules,
        "energy_method": window.method,
        "energy_status": str(window.status),
        "energy_detail": window.detail,
        "energy_uncertainty_j": window.uncertainty_j,
        "energy_rank0_scaled_j": energy.window_rank0_scaled.joules,
        "scope_ratio": energy.scope_ratio,
        **_beside("energy_dcgm", energy.window_dcgm),
        "method_ratio": energy.method_ratio,
        **_idle("unloaded", energy.idle_unloaded),
        **_idle("loaded", energy.idle_loaded),
        **_phase("prefill", energy.prefill),
        **_phase("walk", energy.walk),
        **_phase("decode", energy.decode),
        **_phase("between", energy.between),
        "job_energy_j": energy.job.joules,
        "job_energy_status": str(energy.job.status),
        **_beside("cpu_energy", energy.cpu),
        **_beside("dram_energy", energy.dram),
        **_beside("slurm_node_energy", energy.slurm_node),
        "energy_nodes": len(coverage.nodes),
        "energy_nodes_expected": coverage.nodes_expected,
        "energy_devices": len(coverage.devices),
        "energy_devices_expected": coverage.devices_expected,
        "energy_samples": coverage.samples,
        "energy_asked_period_s": coverage.asked_period_s,
        "energy_period_s": coverage.period_s,
        "energy_jitter_s": coverage.jitter_s,
        "energy_late_s": coverage.late_s,
        "energy_missed": coverage.missed,
        "energy_sampler_cpu_share": coverage.sampler_cpu_share,
        "energy_max_gap_s": coverage.max_gap_s,
        "energy_gaps": coverage.gaps,
        "energy_tick_s": coverage.tick_s,
        "clock_offset_s": coverage.clock_offset_s,
        "clock_drift_s": coverage.clock_drift_s,
        "counter_over_integral": coverage.counter_over_integral,
        "device_uuids": ", ".join(sorted(map(str, uuids))) if uuids and None not in uuids else None,
        **_violations(energy),
    }


def _phase(name: str, reading: Reading) -> Row:
    return {f"{name}_j": reading.joules, f"{name}_uncertainty_j": reading.uncertainty_j}


def _beside(name: str, reading: Reading) -> Row:
    """A reading that stands beside the headline: joules, status and why there are none."""
    return {
        f"{name}_j": reading.joules,
        f"{name}_status": str(reading.status),
        f"{name}_detail": reading.detail,
    }


def _idle(name: str, idle: Idle) -> Row:
    return {
        f"idle_{name}_w": idle.power_w,
        f"idle_{name}_status": str(idle.status),
        f"idle_{name}_detail": idle.detail,
        f"energy_net_{name}_j": idle.net_j,
        f"energy_net_{name}_uncertainty_j": idle.net_uncertainty_j,
    }


def _violations(energy: Energy) -> Row:
    codes = dict.fromkeys(one.code for one in energy.violations)
    details = [one.model_dump() for one in energy.violations]
    return {
        "violations_n": len(details),
        "violations": ", ".join(codes) or None,
        "violations_detail": json.dumps(details) if details else None,
    }


def utilisation_columns(utilisation: Utilisation) -> Row:
    """How busy and in what state the devices were: means, maxima and why clocks were held back."""
    row: Row = {}
    for name in type(utilisation).model_fields:
        values = getattr(utilisation, name)
        if isinstance(values, Mean):
            row |= {name: values.mean, f"{name}_max": values.max}
    shares = sorted(utilisation.throttled.items(), key=lambda entry: -entry[1])
    row["throttled"] = next((share for reason, share in shares if reason in TROUBLE), None)
    row["throttle_reasons"] = ", ".join(f"{reason} {share:.4g}" for reason, share in shares) or None
    return row


def cap_columns(cap: PowerCap | None) -> Row:
    """What the drivers said of a cell's power cap; nothing where it has none."""
    if cap is None:
        return {}
    return {"cap_set_by": cap.set_by, **_range("cap_before", [one.before_w for one in cap.devices])}


def limit_columns(energy: Energy, cap: PowerCap | None) -> Row:
    """Between what power limits the GPUs of a cell ran, and between which they run by themselves."""
    limits = _limits(energy, cap)
    return {
        **_range("limit", [enforced_w for enforced_w, _ in limits]),
        **_range("limit_default", [default_w for _, default_w in limits]),
    }


def _range(name: str, values: Sequence[float | None]) -> Row:
    known = [value for value in values if value is not None]
    return {f"{name}_min_w": min(known, default=None), f"{name}_max_w": max(known, default=None)}


def _limits(energy: Energy, cap: PowerCap | None) -> list[tuple[float | None, float | None]]:
    """Of each device its enforced and its default limit, in W: a cap's as read back when it was set."""
    capped_w = {_place(one): one.enforced_w for one in cap.devices} if cap else {}
    limits = []
    for one in energy.devices:
        enforced_w = capped_w.get((one.device.node, one.device.index))
        if enforced_w is None and one.limits is not None:
            enforced_w = one.limits.enforced_w
        limits.append((enforced_w, one.limits.default_w if one.limits else None))
    return limits


def device_rows(record: Record) -> list[Row]:
    """A row for each device of a cell that ran through, without the cell's axes."""
    if record.energy is None or record.timings is None:
        return []
    limits = {_place(one): one for one in record.power_cap.devices} if record.power_cap else {}
    dcgm = {one.uuid: one for one in record.energy.dcgm.devices} if record.energy.dcgm else {}
    rows = []
    for one, (limit_w, default_w) in zip(
        record.energy.devices, _limits(record.energy, record.power_cap), strict=True
    ):
        device = one.device
        row: Row = {
            "job_id": record.provenance.job_id,
            "node": device.node,
            "device": device.index,
            "uuid": device.uuid,
            "device_name": device.name,
            "method": one.method,
            "status": str(one.status),
            "detail": one.detail,
            "power_source": one.power_source,
            "integral_j": one.integral_j,
            "idle_unloaded_w": one.idle_unloaded_w,
            "idle_loaded_w": one.idle_loaded_w,
            "limit_w": limit_w,
            "limit_default_w": default_w,
        }
        for name, part in _PARTS.items():
            reading = getattr(one, part)
            row |= {f"{name}_j": reading.joules, f"{name}_uncertainty_j": reading.uncertainty_j}
        joules, duration_s = row["energy_j"], record.timings.duration_s
        if joules is not None and duration_s > 0:
            row["power_w"] = joules / duration_s
        for name in ("unloaded", "loaded"):
            idle_w = row[f"idle_{name}_w"]
            if joules is not None and idle_w is not None:
                row[f"net_{name}_j"] = joules - idle_w * duration_s
        if joules is not None and one.method is Method.NVML_COUNTER and one.integral_j:
            row["counter_over_integral"] = joules / one.integral_j
        if said := dcgm.get(str(device.uuid)):
            row |= {"dcgm_j": said.energy_j, "dcgm_nvml_j": said.nvml_j}
            row |= {name: getattr(said, name) for name in ("sm_active", "tensor_active", "dram_active")}
        if limit := limits.get((device.node, device.index)):
            row |= {f"cap_{name}_w": getattr(limit, f"{name}_w") for name in _LIMITS}
        rows.append(row)
    return rows


_LIMITS = ("before", "after", "restored")


def _place(limit: LimitOfDevice) -> tuple[str, int]:
    return limit.device.node, limit.device.index
