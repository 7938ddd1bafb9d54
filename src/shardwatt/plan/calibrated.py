"""What a site's calibration gives the plan: factors, and the figures that they are relative to."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import get_args

from shardwatt.engines import loop_of
from shardwatt.plan.device import DEFAULT_FACTORS, Factors, device_of
from shardwatt.site import Site
from shardwatt.siteplan import Calibration
from shardwatt.study import Precision


def factors_of(site: Site, gpu: str, engine: str) -> Factors:
    """The site's calibration of an engine on a GPU type; the kind's assumptions where there is none.

    A simulated engine has the factors of the engine that it stands for. Factors that are relative to other
    figures than the site's are not used.
    """
    found = site.calibration.get(f"{gpu}/{loop_of(engine)}")
    assumed = DEFAULT_FACTORS[site.gpus[gpu].kind]
    if found is None:
        return assumed
    if changed := _changed_figures(site, gpu, found):
        return replace(
            assumed,
            source=f"calibrated against other figures of {gpu} ({', '.join(changed)}); run "
            "`shardwatt calibrate` again",
        )
    return Factors(
        compute=found.compute,
        bandwidth=found.bandwidth,
        network=found.network,
        launch=found.launch,
        power=found.power,
        source=f"calibrated on {found.fitted_on}: {found.source}",
        spread=dict(found.spread.items()),
    )


def calibration_of(site: Site, gpu: str, engine: str) -> Calibration | None:
    """The site's calibration of an engine on a GPU type, where `factors_of` takes it."""
    found = site.calibration.get(f"{gpu}/{loop_of(engine)}")
    return None if found is None or _changed_figures(site, gpu, found) else found


def figures_of(site: Site, gpu: str, precisions: Collection[str]) -> dict[str, float]:
    """What factors are relative to, by name with its unit: of one rank alone on a GPU type; known ones."""
    found: dict[str, float | None] = {}
    for precision in sorted(precisions):
        if (device := device_of(site, gpu, precision, 1)) is None:
            continue
        found |= {
            f"{precision}_flop_per_s": device.flop_per_s,
            "memory_bandwidth_b_s": device.memory_bandwidth_b_s,
            "inside_b_s": device.inside.bandwidth_b_s / device.inside.peers,
            "inside_latency_s": device.inside.latency_s,
            "between_b_s": device.between.bandwidth_b_s,
            "between_latency_s": device.between.latency_s,
            "launch_s": device.launch_s,
            "tdp_w": device.tdp_w,
            "idle_w": device.idle_w,
        }
    return {name: float(f"{value:.6g}") for name, value in found.items() if value is not None}


def _changed_figures(site: Site, gpu: str, calibration: Calibration) -> list[str]:
    """Names of the figures that a calibration is relative to and that the site has not, or no longer so."""
    if not calibration.figures:
        return []
    now = figures_of(site, gpu, get_args(Precision))
    return [
        name
        for name, value in calibration.figures.items()
        if not math.isclose(now.get(name, math.inf), value, rel_tol=1e-5)
    ]
