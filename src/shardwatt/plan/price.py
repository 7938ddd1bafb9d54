"""What joules and GPU hours cost, and what they emit, with the site's prices and factors."""

from __future__ import annotations

from shardwatt.site import Site

#: Joules of a kWh.
J_PER_KWH = 3.6e6


def supplied_kwh(energy_j: float, pue: float) -> float:
    """Electricity in kWh that a computing centre takes in for some joules of its machines: kWh x PUE.

    Args:
        energy_j: of the machines. The plan knows its GPUs alone, so that processors, memory and network of
            the nodes are not in it.
        pue: power usage effectiveness, energy of the whole centre over that of its machines (ISO/IEC
            30134-2).
    """
    return energy_j / J_PER_KWH * pue


def allocation_energy_j(energy_j: float, rest_w: float, *, held_s: float, used_s: float) -> float:
    """Joules of a whole job, an estimate: those of its inference window, and rest of all other device time.

    Rest is before and after the window (start, loading, idle baselines, warm-up, the end), and that of GPUs
    which the job holds and does not use. Loading and warm-up draw more than rest, so that it is a little low.

    Args:
        energy_j: of the devices that are used, over the window.
        rest_w: power of one device at rest in W.
        held_s: device seconds that the job holds: devices x time of the job.
        used_s: device seconds of the window.
    """
    return energy_j + rest_w * (held_s - used_s)


def cost(site: Site, gpu: str, *, device_hours: float | None, energy_j: float | None) -> float | None:
    """What a cell costs, in the currency of the site's `prices`.

    Where an hour of the type's devices has a price: device hours x that price, electricity being part of it.
    Otherwise kWh x PUE x price of a kWh.

    Args:
        site: its prices.
        gpu: name of the cell's GPU type.
        device_hours: of the devices that the job holds, used or not: GPUs, or shares of machines whose
            processors compute; None where it is not known.
        energy_j: of the whole job; None likewise.

    Returns:
        None where the site names no price, or what has a price is not known; without a PUE, electricity has
        no price.
    """
    price = site.price_gpu_hour(gpu)
    if price is not None:
        return None if device_hours is None else device_hours * price
    if site.prices is None or site.prices.kwh is None or site.pue is None or energy_j is None:
        return None
    return supplied_kwh(energy_j, site.pue) * site.prices.kwh


def carbon_kg(site: Site, energy_j: float | None) -> float | None:
    """kgCO2e of some joules: kWh x PUE x g/kWh / 1000.

    Args:
        site: its PUE, and what a kWh emits.
        energy_j: of the whole job; None where it is not known.

    Returns:
        None without a PUE, without a factor, or without joules.
    """
    if site.carbon is None or site.pue is None or energy_j is None:
        return None
    return supplied_kwh(energy_j, site.pue) * site.carbon.g_per_kwh / 1000


def keys_missing(site: Site) -> dict[str, list[str]]:
    """Keys that a site has not, of those that the electricity of a job takes: for its `cost` and its
    `carbon`. Where GPU hours have a price, cost takes none of them."""
    pue = [] if site.pue is not None else ["pue"]
    price = "prices" if site.prices is None else "prices.kwh" if site.prices.kwh is None else None
    return {
        "cost": [*([price] if price else []), *pue],
        "carbon": [*pue, *([] if site.carbon is not None else ["carbon"])],
    }
