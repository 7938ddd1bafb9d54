"""What every program that a cell starts on each of its nodes is told."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from shardwatt.site import GpuType


def node_options(program: str) -> argparse.ArgumentParser:
    """A parser with the options that all of them have.

    Args:
        program: the module's name.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("--gpu-type", type=GpuType.model_validate_json, required=True, metavar="JSON")
    parser.add_argument("--ranks-per-node", type=int, required=True, help="one GPU each")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--node-index",
        type=int,
        # Slurm numbers the nodes of a step; rank 0 is on node 0.
        default=int(os.environ.get("SLURM_NODEID", "0")),
    )
    return parser
