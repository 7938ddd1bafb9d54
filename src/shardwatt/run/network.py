"""The address and interface by which the ranks of a cell reach this node."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass

import psutil

from shardwatt.errors import CellFailure, Reason


@dataclass(frozen=True, slots=True)
class Address:
    """Where this node is reached.

    Attributes:
        host: IPv4 address.
        interface: the network interface that carries it.
    """

    host: str
    interface: str


LOOPBACK = Address("127.0.0.1", "lo")


def own_address(nodes: int, interface: str | None) -> Address:
    """This node's address; on one node nothing listens to the network.

    Args:
        nodes: of the job.
        interface: the site's, or None for the one that carries the address of this node's host name.

    Raises:
        CellFailure: CONFIGURATION, there is no such interface, it has no IPv4 address, or the host name
            leads to none of this node's.
    """
    if nodes == 1:
        return LOOPBACK
    addresses = {
        name: [entry.address for entry in entries if entry.family == socket.AF_INET]
        for name, entries in psutil.net_if_addrs().items()
    }
    node = platform.node()
    if interface is not None:
        if not addresses.get(interface):
            known = ", ".join(sorted(name for name, found in addresses.items() if found)) or "none"
            raise CellFailure(
                Reason.CONFIGURATION,
                f"network_interface: '{interface}' has no IPv4 address on {node}; those that have one: "
                f"{known}; correct the site",
                node=node,
            )
        return Address(addresses[interface][0], interface)
    try:
        host = socket.gethostbyname(node)
    except OSError as problem:
        raise _unusable(node, f"is not resolved ({problem})") from None
    carriers = [name for name, found in addresses.items() if host in found]
    if host.startswith("127.") or not carriers:
        raise _unusable(node, f"leads to {host}, by which other nodes cannot reach it")
    return Address(host, carriers[0])


def _unusable(node: str, found: str) -> CellFailure:
    return CellFailure(
        Reason.CONFIGURATION,
        f"the host name {node} {found}; name the interface between the nodes as the site's network_interface",
        node=node,
    )
