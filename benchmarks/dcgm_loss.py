"""What DCGM's job statistics lose at different intervals: a table and docs/images/dcgm-interval.png.

    python benchmarks/dcgm_loss.py [--picture FILE]

Nothing is measured: the rule by which DCGM counts is applied to windows of many lengths, started anywhere
between two samples. Jobs that others published stand beside it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from measuring import ROOT, table
from sampled_counter import shares
from shardwatt.analysis.panels import ALERT, COLOURS, INK, MUTED

INTERVALS_S = (30.0, 1.0, 0.1)
WINDOWS_S = (10, 20, 35, 45, 65, 100, 130, 200, 320, 620, 1250, 1790)


@dataclass(frozen=True, slots=True)
class Published:
    """A job whose statistics somebody printed; docs/energy-method.md says where."""

    where: str
    duration_s: float
    energy_j: int
    power_w: float

    @property
    def share(self) -> float:
        return self.energy_j / (self.power_w * self.duration_s)


PUBLISHED = (
    Published("UCREL/HEC", 31.56, 0, 56.378),
    Published("uber-prof", 47.57, 0, 37.8985),
    Published("Lancaster HEC", 162.76, 25_904, 220.23),
    Published("KAUST Ibex", 442.62, 89_504, 208.35),
    Published("KAUST Ibex", 1329.78, 156_500, 119.23),
)


def tell() -> None:
    """Print the shares as Markdown."""
    rows = []
    for window_s in WINDOWS_S:
        row = [f"{window_s:,}"]
        for interval_s in INTERVALS_S:
            found = shares(window_s, interval_s)
            row += [f"{found.mean:.3f}", f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"]
        row.append(f"{100 * shares(window_s, INTERVALS_S[0]).nothing:.0f} %")
        rows.append(row)
    heads = ["window, s"]
    for interval_s in INTERVALS_S:
        heads += [f"mean at {interval_s:g} s", "median (5 to 95 %)"]
    print(table([*heads, "nothing at 30 s"], rows), end="\n\n")
    text = table(
        ["published by", "duration, s", "DCGM, J", "average power x time, J", "share"],
        [
            [
                one.where,
                f"{one.duration_s:g}",
                f"{one.energy_j:,}",
                f"{one.power_w * one.duration_s:,.0f}",
                f"{one.share:.2f}",
            ]
            for one in PUBLISHED
        ],
    )
    print(text)


def draw(path: Path) -> None:
    """Draw the shares over the window's length, with the published jobs."""
    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.6, 3.9), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        windows = np.geomspace(10, 1800, 1200)
        for interval_s, colour in zip(INTERVALS_S, COLOURS, strict=False):
            found = [shares(window_s, interval_s, starts=401) for window_s in windows]
            if interval_s == INTERVALS_S[0]:
                low, high = [one.low for one in found], [one.high for one in found]
                axes.fill_between(windows, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(windows, [one.mean for one in found], color=colour, label=f"every {interval_s:g} s")
        axes.plot(
            [one.duration_s for one in PUBLISHED],
            [one.share for one in PUBLISHED],
            linestyle="none",
            marker="D",
            markersize=6,
            markerfacecolor="white",
            markeredgecolor=ALERT,
            markeredgewidth=1.4,
            label="published jobs",
            clip_on=False,
            zorder=5,
        )
        axes.set_xscale("log")
        axes.set_xticks([10, 30, 60, 120, 300, 600, 1800])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.minorticks_off()
        axes.set_xlim(10, 1800)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="y", color="#dfe1e5", linewidth=0.8)
        axes.set_xlabel("length of the job, s")
        axes.set_ylabel("energy that DCGM counts, of the true one")
        axes.legend(frameon=False, loc="lower right", title="samples", alignment="left")
        figure.suptitle(
            "What DCGM's job statistics count of a job's energy",
            x=0.02,
            ha="left",
            size=12,
            weight="bold",
            color=INK,
        )
        axes.set_title(
            "lines: mean over all starts between two samples; band: 5 to 95 % at 30 s; constant power",
            loc="left",
            size=8.5,
            color=MUTED,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "dcgm-interval.png")
    options = parser.parse_args()
    tell()
    draw(options.picture)


if __name__ == "__main__":
    main()
