"""The cluster's network: a bridge with an address of this machine, and a cable to each node."""

from __future__ import annotations

import ipaddress
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slurm_cluster.layout import ClusterError, Layout, fingerprint

_HIGHEST_INDEX = 254


def free_indices() -> Iterator[int]:
    """Numbers whose subnet touches no route of this machine, lowest first."""
    taken = [
        ipaddress.ip_network(route["dst"], strict=False)
        for route in _ip_json("-4", "route", "show", "table", "all")
        if route["dst"] != "default"
    ]
    for index in range(_HIGHEST_INDEX + 1):
        subnet = ipaddress.ip_network(f"10.213.{index}.0/24")
        if not any(subnet.overlaps(other) for other in taken):
            yield index


def is_free(port: int) -> bool:
    """Whether a server can listen on a port: another cluster's may outlive its bridge."""
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def create_bridge(layout: Layout) -> bool:
    """Create the bridge; its hardware address marks it as this base folder's.

    Returns:
        False if another cluster has taken the name meanwhile.

    Raises:
        ClusterError: bridges cannot be made here.
    """
    made = _ip("link", "add", "name", layout.bridge, "address", _mark(layout.base), "type", "bridge")
    if made.returncode != 0:
        if "File exists" in made.stderr:
            return False
        raise ClusterError(f"cannot create a network bridge: {made.stderr.strip()}")
    _ip_checked("address", "add", f"{layout.login_address}/24", "dev", layout.bridge)
    _ip_checked("link", "set", layout.bridge, "up")
    return True


def plug_in(layout: Layout, node: str, pid: int) -> None:
    """Lay the cable from the bridge into the network namespace of process `pid`, as its eth0."""
    port = layout.bridge_port(node)
    _ip_checked(
        *("link", "add", "name", port, "master", layout.bridge, "type", "veth"),
        *("peer", "name", "eth0", "netns", str(pid)),
    )
    commands = f"link set lo up\naddress add {layout.address(node)}/24 dev eth0\nlink set eth0 up\n"
    inside = ["nsenter", "--target", str(pid), "--net", "ip", "-batch", "-"]
    subprocess.run(inside, input=commands, text=True, check=True)
    set_cable(layout, node, plugged=True)


def unplug(layout: Layout, node: str) -> None:
    """Remove a node's cable; the kernel would do it too, some time after the node's last process."""
    _ip("link", "delete", layout.bridge_port(node))


def set_cable(layout: Layout, node: str, *, plugged: bool) -> None:
    """Cut a node off the network, or join it again."""
    _ip_checked("link", "set", layout.bridge_port(node), "up" if plugged else "down")


def remove_bridges(base: Path) -> None:
    """Remove every bridge and cable that bears this base folder's mark."""
    for bridge in bridges(base):
        for port in _ip_json("link", "show", "master", bridge):
            _ip("link", "delete", port["ifname"])  # it may just have gone with its node
        _ip_checked("link", "delete", bridge)


def bridges(base: Path) -> list[str]:
    """Names of the bridges that bear this base folder's mark."""
    links = _ip_json("link", "show", "type", "bridge")
    return [link["ifname"] for link in links if link.get("address") == _mark(base)]


def _mark(base: Path) -> str:
    digits = fingerprint(base)
    return ":".join(["02", *(digits[start : start + 2] for start in range(0, 10, 2))])


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True)


def _ip_checked(*words: str) -> str:
    done = _ip(*words)
    if done.returncode != 0:
        raise ClusterError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def _ip_json(*words: str) -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(_ip_checked("-json", *words) or "[]")
    return [link for link in links if link]  # `ip` prints {} for what a filter left out
