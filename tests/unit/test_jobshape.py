"""Guards how shards are laid out on nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.errors import SiteError
from shardwatt.jobshape import JobShape, job_shape
from small_project import GPUS, make_site


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


def test_nodes_are_filled(tmp_path: Path) -> None:
    with pytest.raises(
        SiteError,
        match="shards: 12 does not fill whole nodes of 8 v100; use up to 8, or a multiple of it",
    ):
        job_shape(make_site(tmp_path), "v100", 12)


@given(shards=st.integers(1, 4096), per_node=st.integers(1, 64))
def test_a_layout_has_as_many_ranks_as_shards(shards: int, per_node: int) -> None:
    site = make_site(Path("/nowhere"), gpus={"v100": {**GPUS["v100"], "per_node": per_node}})
    try:
        shape = job_shape(site, "v100", shards)
    except SiteError:
        assert shards > per_node
    else:
        assert shape.ranks == shards
        assert shape.ranks_per_node <= per_node
