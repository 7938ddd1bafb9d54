"""A real Slurm cluster of several nodes on one machine, for tests and for trying the pipeline out."""

from __future__ import annotations

from slurm_cluster.cluster import Cluster
from slurm_cluster.config import ANSWERS_SOON, KILLS_SOON, LOSES_NODES_SOON
from slurm_cluster.layout import DEFAULT_GROUPS, ClusterError, NodeGroup

__all__ = [
    "ANSWERS_SOON",
    "DEFAULT_GROUPS",
    "KILLS_SOON",
    "LOSES_NODES_SOON",
    "Cluster",
    "ClusterError",
    "NodeGroup",
]
