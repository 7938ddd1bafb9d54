"""Guards how shards are laid out on nodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.errors import SiteError
from shardwatt.jobshape import JobShape, devices_held, gpus_held, job_shape
from shardwatt.site import Site
from slurm_site import slurm_site
from small_project import GPUS, make_site


def cluster(per_node: int, nodes: int | None) -> Site:
    """A site on Slurm with one type of GPU."""
    v100: dict[str, Any] = {**GPUS["v100"], "per_node": per_node, "slurm": {"nodes": nodes}}
    return make_site(Path("/nowhere"), launcher="slurm", gpus={"v100": v100})


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_up_to_a_node_every_number_has_a_layout(tmp_path: Path, shards: int) -> None:
    assert job_shape(make_site(tmp_path), "v100", shards) == JobShape(1, shards)


def test_one_machine_is_one_node(tmp_path: Path) -> None:
    with pytest.raises(
        SiteError,
        match=r"shards: 16 needs 2 nodes of 8 v100, and launcher `local` has one; use up to 8 shards, "
        r"or raise gpus\.v100\.per_node of site 'testbed'",
    ):
        job_shape(make_site(tmp_path), "v100", 16)


def test_one_machine_offers_no_multiples_of_a_node(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=r"shards: 12 does not fill whole nodes of 8 v100; use 1 to 8$"):
        job_shape(make_site(tmp_path), "v100", 12)


@pytest.mark.parametrize(
    ("per_node", "shards", "shape"),
    [
        (2, 1, JobShape(1, 1)),
        (2, 2, JobShape(1, 2)),
        (2, 8, JobShape(4, 2)),
        (1, 4, JobShape(4, 1)),
        (8, 16, JobShape(2, 8)),
    ],
)
def test_on_slurm_nodes_are_filled_one_after_the_other(per_node: int, shards: int, shape: JobShape) -> None:
    assert job_shape(cluster(per_node, 4), "v100", shards) == shape


@pytest.mark.parametrize(
    ("per_node", "nodes", "shards", "message"),
    [
        (2, 4, 3, "shards: 3 does not fill whole nodes of 2 v100; use 1 to 2, 4, 6 or 8"),
        (8, None, 12, "shards: 12 does not fill whole nodes of 8 v100; use 1 to 8, or a multiple of 8"),
        (
            *(2, 16, 5),
            "shards: 5 does not fill whole nodes of 2 v100; use 1 to 2, or a multiple of 2 up to 32",
        ),
        (
            *(2, 4, 16),
            "shards: 16 needs 8 nodes of 2 v100, and site 'testbed' has 4; use 1 to 2, 4, 6 or 8, "
            "or correct gpus.v100.slurm.nodes",
        ),
        (
            *(1, 1, 2),
            "shards: 2 needs 2 nodes of 1 v100, and site 'testbed' has 1; use 1, "
            "or correct gpus.v100.slurm.nodes",
        ),
    ],
)
def test_what_nodes_cannot_hold_is_refused_with_what_they_can(
    per_node: int, nodes: int | None, shards: int, message: str
) -> None:
    with pytest.raises(SiteError, match=f"^{re.escape(message)}$"):
        job_shape(cluster(per_node, nodes), "v100", shards)


@given(shards=st.integers(1, 4096), per_node=st.integers(1, 64), launcher=st.sampled_from(["local", "slurm"]))
def test_a_layout_has_as_many_ranks_as_shards(shards: int, per_node: int, launcher: str) -> None:
    gpus = {"v100": {**GPUS["v100"], "per_node": per_node}}
    site = make_site(Path("/nowhere"), launcher=launcher, gpus=gpus)
    try:
        shape = job_shape(site, "v100", shards)
    except SiteError:
        assert shards > per_node
    else:
        assert shape.ranks == shards
        assert shape.ranks_per_node <= per_node


@pytest.mark.parametrize(
    ("words", "shards", "held"),
    [
        ({}, 1, 2),
        ({}, 8, 8),
        ({"exclusive": False, "gres": "gpu:v100"}, 1, 1),
        ({"exclusive": False, "gres": "gpu:v100"}, 4, 4),
    ],
)
def test_of_nodes_of_its_own_a_job_holds_every_gpu(words: dict[str, Any], shards: int, held: int) -> None:
    assert gpus_held(slurm_site(words), "v100", shards) == held


def test_devices_of_processors_are_held_like_gpus() -> None:
    assert devices_held(make_site(Path("/nowhere")), "cpu", 1) == GPUS["cpu"]["per_node"]
    assert devices_held(slurm_site(), "cpu", 1) == 1, "its nodes are shared"


def test_processors_hold_no_gpus_unless_slurm_hands_some_out() -> None:
    assert gpus_held(slurm_site(), "cpu", 2) == 0
    cpu = {**GPUS["cpu"], "per_node": 2, "slurm": {"gres": "gpu:v100"}}
    assert gpus_held(make_site(Path("/nowhere"), launcher="slurm", gpus={"cpu": cpu}), "cpu", 1) == 2
