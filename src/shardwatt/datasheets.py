"""What makers' data sheets say of GPUs: the figures that utilisation is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_GB_S, _TFLOP_S = 1e9, 1e12


@dataclass(frozen=True, slots=True)
class DataSheet:
    """The figures of one device.

    Attributes:
        name: in this catalogue.
        memory_gib: its memory. Data sheets write GB and mean GiB, of which driver and error correction keep
            up to 7 %.
        memory_bandwidth_b_s: of its memory, in B/s; their GB/s are decimal.
        flop_per_s: operations a second by precision, dense. bf16 and fp16: of the matrix units, without
            sparsity, adding up in float32. fp32: of whole float32 numbers, so on NVIDIA's GPUs of the plain
            cores and not in TF32. None: the device does not calculate in it.
        tdp_w: thermal design power.
        compute_capability: NVIDIA's; None for others.
        source: where the figures stand.
        link_gb_s: to all other devices of the node together, in one direction, in GB/s: of modules NVLink or
            Infinity Fabric, of cards the slot's PCIe x16, since bridges between two of them are extra.
        peers: devices that these links go to on boards without a switch, evenly: two of them have
            `link_gb_s` / `peers` between them. 1 where a switch or the slot gives any two all of it.
        meshed: most devices of a board without a switch.
        idle_w: power in W at rest, driver loaded and nothing on the device (an assumption).
        clock_mhz: boost clock in MHz.
        lowest_clock_mhz: lowest core clock in MHz (an assumption).
        power_min_w: lowest power limit in W that it takes; None where no listing of one was found.
    """

    name: str
    memory_gib: float
    memory_bandwidth_b_s: float
    flop_per_s: Mapping[str, float | None]
    tdp_w: float
    compute_capability: str | None
    source: str
    link_gb_s: float
    idle_w: float
    clock_mhz: float
    lowest_clock_mhz: float
    peers: int = 1
    meshed: int = 1
    power_min_w: float | None = None


def _sheet(
    name: str,
    memory_gib: float,
    memory_bandwidth_gb_s: float,
    fp32: float,
    bf16: float | None,
    fp16: float,
    tdp_w: float,
    compute_capability: str | None,
    source: str,
) -> DataSheet:
    """An entry in the units of data sheets: GB/s and TFLOP/s."""
    rates = {"fp32": fp32, "bf16": bf16, "fp16": fp16}
    return DataSheet(
        name,
        memory_gib,
        memory_bandwidth_gb_s * _GB_S,
        {precision: None if rate is None else rate * _TFLOP_S for precision, rate in rates.items()},
        tdp_w,
        compute_capability,
        source,
        *_BOARDS[name],
        *_MESHES.get(name, (1, 1)),
        _POWER_MIN_W.get(name),
    )


#: Of each device: GB/s to another one of its node in one direction, W at rest, boost and lowest clock in MHz.
#: Links and boost clocks: the data sheets named below, which give links in both directions together, and the
#: makers' architecture whitepapers. Data sheets give neither power at rest nor the lowest clock: those are
#: assumptions, near what nvidia-smi and amd-smi show of such devices.
_BOARDS: dict[str, tuple[float, float, float, float]] = {
    "v100-pcie-16gb": (16, 25, 1380, 135),
    "v100-pcie-32gb": (16, 25, 1380, 135),
    "v100-sxm2-16gb": (150, 40, 1530, 135),
    "v100-sxm2-32gb": (150, 40, 1530, 135),
    "v100s-pcie-32gb": (16, 25, 1597, 135),
    "t4": (16, 10, 1590, 300),
    "a100-pcie-40gb": (32, 35, 1410, 210),
    "a100-sxm-40gb": (300, 50, 1410, 210),
    "a100-pcie-80gb": (32, 45, 1410, 210),
    "a100-sxm-80gb": (300, 60, 1410, 210),
    "a30": (32, 28, 1440, 210),
    "a10": (32, 20, 1695, 210),
    "a40": (32, 30, 1740, 210),
    "rtx-3090": (32, 25, 1695, 210),
    "rtx-a6000": (32, 25, 1800, 210),
    "l4": (32, 15, 2040, 210),
    "l40": (32, 35, 2490, 210),
    "l40s": (32, 35, 2520, 210),
    "rtx-4090": (32, 25, 2520, 210),
    "h100-pcie-80gb": (64, 50, 1620, 210),
    "h100-sxm-80gb": (450, 70, 1830, 210),
    "h100-nvl-94gb": (64, 60, 1785, 210),
    "h200-sxm-141gb": (450, 75, 1830, 210),
    "h200-nvl-141gb": (64, 75, 1785, 210),
    "b200-sxm-180gb": (900, 140, 1965, 120),
    "mi300x": (448, 140, 2100, 130),
    "mi325x": (448, 140, 2100, 130),
}


#: Of modules on boards without a switch: peers that each one's links go to evenly, and the most devices of
#: such a board. V100 SXM2: 2 of 6 links to each of three peers; on boards of eight two of the four peers have
#: one (DGX-1 whitepaper), which is taken to be even. A100, H100 and H200: boards of four alone (HGX A100 and
#: H100 4-GPU); those of eight have switches. MI300X and MI325X: 7 links of 64 GB/s to each of seven peers
#: (AMD CDNA 3 whitepaper).
_MESHES: dict[str, tuple[int, int]] = {
    "v100-sxm2-16gb": (3, 8),
    "v100-sxm2-32gb": (3, 8),
    "a100-sxm-40gb": (3, 4),
    "a100-sxm-80gb": (3, 4),
    "h100-sxm-80gb": (3, 4),
    "h200-sxm-141gb": (3, 4),
    "mi300x": (7, 8),
    "mi325x": (7, 8),
}


#: Lowest power limit in W, which no data sheet names: "Min Power Limit" of `nvidia-smi -q` in published
#: listings of such boards, for A100 modules in NVIDIA/nvidia-docker issue 1648 and NVIDIA/DCGM issue 152, for
#: the A40 in NVIDIA/nvidia-docker issue 1447, for the T4 in influxdata/telegraf's test data; B200: NVIDIA DGX
#: B200 user guide, "Power capping". V100 modules are left out: their boards differ (a listing has 150).
_POWER_MIN_W: dict[str, float] = {
    "v100-pcie-16gb": 100,
    "v100-pcie-32gb": 100,
    "v100s-pcie-32gb": 100,
    "t4": 60,
    "a100-sxm-40gb": 100,
    "a100-pcie-80gb": 150,
    "a100-sxm-80gb": 100,
    "a40": 100,
    "rtx-3090": 100,
    "h100-sxm-80gb": 200,
    "h200-sxm-141gb": 200,
    "b200-sxm-180gb": 200,
}


_V100 = "NVIDIA V100 data sheet, January 2020"
_A100 = "NVIDIA A100 data sheet, June 2021"
_A100_40 = "NVIDIA A100 data sheet, May 2020, and A100 PCIe product brief, 2020"
_L4 = "NVIDIA L4 data sheet, 2023; half of the rates with sparsity"
_ADA = "NVIDIA Ada GPU architecture whitepaper, 2022"
_H100 = "NVIDIA H100 data sheet, 2023; half of the rates with sparsity"
_H200 = "NVIDIA H200 data sheet, 2024; half of the rates with sparsity"
_B200 = "NVIDIA Blackwell data sheet, 2025, HGX B200"
_MI325X = "AMD Instinct MI325X data sheet, 2024"
_GA102 = "NVIDIA Ampere GA102 architecture whitepaper, 2021"

#: Every data sheet, by name: GiB, GB/s, TFLOP/s in fp32, bf16 and fp16, W, compute capability, source.
DATA_SHEETS: dict[str, DataSheet] = {
    sheet.name: sheet
    for sheet in (
        _sheet("v100-pcie-16gb", 16, 900, 14.0, None, 112, 250, "7.0", _V100),
        _sheet("v100-pcie-32gb", 32, 900, 14.0, None, 112, 250, "7.0", _V100),
        _sheet("v100-sxm2-16gb", 16, 900, 15.7, None, 125, 300, "7.0", _V100),
        _sheet("v100-sxm2-32gb", 32, 900, 15.7, None, 125, 300, "7.0", _V100),
        _sheet("v100s-pcie-32gb", 32, 1134, 16.4, None, 130, 250, "7.0", _V100),
        _sheet("t4", 16, 320, 8.1, None, 65, 70, "7.5", "NVIDIA T4 product brief PB-09256-001, 2020"),
        _sheet("a100-pcie-40gb", 40, 1555, 19.5, 312, 312, 250, "8.0", _A100_40),
        _sheet("a100-sxm-40gb", 40, 1555, 19.5, 312, 312, 400, "8.0", _A100_40),
        _sheet("a100-pcie-80gb", 80, 1935, 19.5, 312, 312, 300, "8.0", _A100),
        _sheet("a100-sxm-80gb", 80, 2039, 19.5, 312, 312, 400, "8.0", _A100),
        _sheet("a30", 24, 933, 10.3, 165, 165, 165, "8.0", "NVIDIA A30 data sheet, 2022"),
        _sheet("a10", 24, 600, 31.2, 125, 125, 150, "8.6", "NVIDIA A10 data sheet, 2021"),
        _sheet("a40", 48, 696, 37.4, 149.7, 149.7, 300, "8.6", "NVIDIA A40 data sheet, 2022"),
        _sheet("rtx-3090", 24, 936, 35.6, 71, 71, 350, "8.6", _GA102),
        _sheet("rtx-a6000", 48, 768, 38.7, 154.8, 154.8, 300, "8.6", _GA102),
        _sheet("l4", 24, 300, 30.3, 121, 121, 72, "8.9", _L4),
        _sheet("l40", 48, 864, 90.5, 181.05, 181.05, 300, "8.9", "NVIDIA L40 data sheet, 2023"),
        _sheet("l40s", 48, 864, 91.6, 362.05, 362.05, 350, "8.9", "NVIDIA L40S data sheet, 2023"),
        _sheet("rtx-4090", 24, 1008, 82.6, 165.2, 165.2, 450, "8.9", _ADA),
        _sheet("h100-pcie-80gb", 80, 2000, 51, 756.5, 756.5, 350, "9.0", _H100),
        _sheet("h100-sxm-80gb", 80, 3350, 67, 989.5, 989.5, 700, "9.0", _H100),
        _sheet("h100-nvl-94gb", 94, 3900, 60, 835.5, 835.5, 400, "9.0", _H100),
        _sheet("h200-sxm-141gb", 141, 4800, 67, 989.5, 989.5, 700, "9.0", _H200),
        _sheet("h200-nvl-141gb", 141, 4800, 60, 835.5, 835.5, 600, "9.0", _H200),
        _sheet("b200-sxm-180gb", 180, 7700, 75, 2250, 2250, 1000, "10.0", _B200),
        _sheet("mi300x", 192, 5300, 163.4, 1307.4, 1307.4, 750, None, "AMD Instinct MI300X data sheet, 2023"),
        _sheet("mi325x", 256, 6000, 163.4, 1307.4, 1307.4, 1000, None, _MI325X),
    )
}  # fmt: skip


def markdown() -> str:
    """The catalogue as a Markdown table."""
    heads = ["name", "GiB", "GB/s", "TFLOP/s fp32", "bf16", "fp16", "TDP (W)", "capability"]
    heads += ["link (GB/s)", "idle (W, assumed)", "least limit (W)", "clock (MHz)", "source"]
    rows = [heads, ["---"] * len(heads), *(_row(sheet) for sheet in DATA_SHEETS.values())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(sheet: DataSheet) -> list[str]:
    rates = [sheet.flop_per_s[precision] for precision in ("fp32", "bf16", "fp16")]
    return [
        f"`{sheet.name}`",
        f"{sheet.memory_gib:g}",
        f"{sheet.memory_bandwidth_b_s / _GB_S:g}",
        *("none" if rate is None else f"{rate / _TFLOP_S:g}" for rate in rates),
        f"{sheet.tdp_w:g}",
        sheet.compute_capability or "none",
        f"{sheet.link_gb_s:g}" + (f" to {sheet.peers}" if sheet.peers > 1 else ""),
        f"{sheet.idle_w:g}",
        "unknown" if sheet.power_min_w is None else f"{sheet.power_min_w:g}",
        f"{sheet.lowest_clock_mhz:g} to {sheet.clock_mhz:g}",
        sheet.source,
    ]
