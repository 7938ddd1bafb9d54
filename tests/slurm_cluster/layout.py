"""The plan of one cluster: its nodes, their addresses, and where everything of it lies."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path


class ClusterError(Exception):
    """The cluster cannot be started or used; says what was found and what to do."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind; their partition and their GPUs' type carry the group's name."""

    name: str
    nodes: int
    gpus_per_node: int = 2

    def node_names(self) -> list[str]:
        """Names of the nodes, such as v100-0."""
        return [f"{self.name}-{number}" for number in range(self.nodes)]


DEFAULT_GROUPS = (NodeGroup("v100", 4), NodeGroup("a100", 2))

CPUS_PER_NODE = 8
MEMORY_PER_NODE_MB = 8000

#: A Unix socket's path has 108 bytes; the longest one below the base folder takes these.
_LONGEST_BASE = 108 - len("/munge.socket.2") - 1


@dataclass(frozen=True)
class Layout:
    """Everything that follows from a cluster's folder, its number and its nodes.

    Args:
        base: folder below which all files of the cluster lie.
        index: number of the cluster on this machine; gives its subnet, bridge and ports.
        groups: the nodes.
        accounting: whether slurmdbd and a database belong to it.
    """

    base: Path
    index: int
    groups: tuple[NodeGroup, ...]
    accounting: bool

    @property
    def cluster_name(self) -> str:
        """Slurm's ClusterName."""
        return f"shardwatt{self.index}"

    @property
    def bridge(self) -> str:
        """Name of the bridge that joins the nodes; the login side has an address on it."""
        return f"shardwatt{self.index}"

    @property
    def subnet(self) -> str:
        """The cluster's own IPv4 network."""
        return f"10.213.{self.index}.0/24"

    @property
    def login_address(self) -> str:
        """IPv4 address of this machine on the bridge; slurmctld listens there."""
        return f"10.213.{self.index}.1"

    @property
    def login_name(self) -> str:
        """This machine's short name, which slurmctld compares with its own."""
        return platform.node().split(".")[0]

    @property
    def controller_port(self) -> int:
        """TCP port of slurmctld, which cannot be bound to one address."""
        return 26000 + 2 * self.index

    @property
    def database_port(self) -> int:
        """TCP port of slurmdbd, which cannot be bound to one address."""
        return 26001 + 2 * self.index

    def node_names(self) -> list[str]:
        """Names of all nodes, group by group."""
        return [name for group in self.groups for name in group.node_names()]

    def address(self, node: str) -> str:
        """IPv4 address of a node."""
        return f"10.213.{self.index}.{10 + self.node_names().index(node)}"

    def bridge_port(self, node: str) -> str:
        """Name of the node's network cable at the bridge's end."""
        return f"shardwatt{self.index}n{self.node_names().index(node)}"

    @property
    def slurm_conf(self) -> Path:
        """The file that SLURM_CONF names."""
        return self.base / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """Socket of the cluster's own munged."""
        return self.base / "munge.socket.2"

    def folder(self, name: str) -> Path:
        """A folder below the base folder."""
        return self.base / name

    def save(self) -> None:
        """Write the layout into the base folder, for those who find the cluster running."""
        content = asdict(self) | {"base": str(self.base)}
        state_file(self.base).write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, base: Path) -> Layout:
        """Read the layout of a running cluster.

        Raises:
            ClusterError: no cluster was started in this folder.
        """
        try:
            content = json.loads(state_file(base).read_text())
        except FileNotFoundError:
            raise ClusterError(f"{base}: no cluster is running here; start one first") from None
        groups = tuple(NodeGroup(**group) for group in content["groups"])
        return cls(base, content["index"], groups, content["accounting"])


def state_file(base: Path) -> Path:
    """The file that says what runs in a base folder; there from start to stop."""
    return base / "cluster.json"


def check_base(base: Path) -> Path:
    """Return the folder's full path.

    Raises:
        ClusterError: the path is too long for a Unix socket, or has characters that slurm.conf cannot hold.
    """
    full = base.resolve()
    if len(str(full)) > _LONGEST_BASE:
        raise ClusterError(
            f"{full}: {len(str(full))} characters; expected at most {_LONGEST_BASE} for the sockets in it"
        )
    if any(character in str(full) for character in " \t\"'#=,[]%\\"):
        raise ClusterError(f"{full}: expected a path without blanks, quotes and any of # = , [ ] % \\")
    return full


def fingerprint(base: Path) -> str:
    """Ten hexadecimal digits that mark what belongs to this folder."""
    return hashlib.sha256(str(base).encode()).hexdigest()[:10]
