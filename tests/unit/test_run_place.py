"""Guards how a rank finds out which one it is, which GPU is its own, and by which address it is reached."""

from __future__ import annotations

import platform
import socket

import psutil
import pytest

from shardwatt.errors import CellFailure, Reason
from shardwatt.run.network import LOOPBACK, own_address
from shardwatt.run.place import Place, own_place


def test_a_task_of_srun_takes_the_gpu_of_its_number_on_the_node() -> None:
    environment = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "CUDA_VISIBLE_DEVICES": "2,3"}
    assert own_place(2, environment) == Place(rank=5, local_rank=1, device="3", in_step=True)


def test_submitit_inside_a_slurm_job_is_believed_first() -> None:
    environment = {
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SUBMITIT_LOCAL_GLOBALID": "1",
        "SUBMITIT_LOCAL_LOCALID": "1",
    }
    assert own_place(2, environment) == Place(rank=1, local_rank=1, device=None, in_step=False)


def test_on_one_node_nothing_listens_to_the_network() -> None:
    assert own_address(1, "no-such-interface") == LOOPBACK


def test_the_interface_of_the_site_decides() -> None:
    assert own_address(2, "lo").host == "127.0.0.1"


def test_an_interface_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        CellFailure, match=r"^network_interface: 'ib7' has no IPv4 address .*: .*\blo\b"
    ) as raised:
        own_address(2, "ib7")
    assert raised.value.reason is Reason.CONFIGURATION


def test_a_host_name_that_others_cannot_reach_asks_for_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Debian writes it into /etc/hosts."""
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    with pytest.raises(CellFailure, match=rf"{platform.node()} leads to 127\.0\.1\.1, .* network_interface"):
        own_address(2, None)


def test_a_host_name_leads_to_the_interface_that_carries_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = psutil.net_if_addrs()["lo"][0]._replace(family=socket.AF_INET, address="10.1.2.3")
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"ib0": [entry]})
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.1.2.3")
    address = own_address(2, None)
    assert (address.host, address.interface) == ("10.1.2.3", "ib0")
