"""Guards a site's words about meters and power limits: what reaches a program is of a strict form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardwatt.errors import SiteError
from small_project import make_site

WORDS = ["sudo", "/usr/local/sbin/set-gpu-power", "{watts}", "--gpus={gpus}"]


def test_nothing_is_asked_of_dcgm_and_no_limit_is_set_unless_the_site_says_so(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert (site.dcgm, site.power_limits) == (None, None)


def test_dcgm_is_watched_ten_times_a_second_unless_the_site_says_otherwise(tmp_path: Path) -> None:
    dcgm = make_site(tmp_path, dcgm={}).dcgm
    assert dcgm is not None
    assert (dcgm.command, dcgm.interval_ms, dcgm.profiling) == ("dcgmi", 100, False)


def test_a_command_for_limits_is_kept_word_by_word(tmp_path: Path) -> None:
    limits = make_site(tmp_path, power_limits={"set_by": "command", "command": WORDS}).power_limits
    assert limits is not None
    assert limits.command == WORDS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dcgm": {"interval_ms": 99}}, "dcgm.interval_ms: found 99; expected at least 100"),
        ({"dcgm": {"command": "dcgmi; reboot"}}, "dcgm.command: found 'dcgmi; reboot'; expected a program's"),
        ({"power_limits": {"set_by": "magic"}}, "power_limits.set_by: found 'magic'; expected"),
        ({"power_limits": {"set_by": "nvml", "command": WORDS}}, "expected `command` with `set_by: command`"),
        ({"power_limits": {"set_by": "command"}}, "expected `command` with `set_by: command`"),
        (
            {"power_limits": {"set_by": "command", "command": ["set", "{watts}"]}},
            "expected a command with {watts} and {gpus} in it",
        ),
        (
            {"power_limits": {"set_by": "command", "command": ["set", "{watts}", "{gpu}"]}},
            "expected no braces but {watts} and {gpus}",
        ),
        (
            {"power_limits": {"set_by": "command", "command": ["sh", "-c", "x {watts} $(id) {gpus}"]}},
            "power_limits.command.2: found 'x {watts} $(id) {gpus}'; expected letters, digits",
        ),
        (
            {"power_limits": {"set_by": "command", "command": ["{watts}", "{gpus}"]}},
            "command: found '{watts}' as its first word; expected a program's name or path",
        ),
        (
            {"power_limits": {"set_by": "command", "command": ["/bin/{gpus}", "{watts}"]}},
            "command: found '/bin/{gpus}' as its first word",
        ),
        ({"power_limits": {"set_by": "nvml", "leases": "here"}}, "expected an absolute path"),
    ],
)
def test_a_mistake_gets_one_message(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError) as caught:
        make_site(tmp_path, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_limits_of_a_gpu_type_rise(tmp_path: Path) -> None:
    gpus = {"v100": {"kind": "cuda", "per_node": 2, "memory_gib": 32, "power_limits_w": [300, 100]}}
    with pytest.raises(SiteError, match=r"power_limits_w.*expected the lowest limit first"):
        make_site(tmp_path, gpus=gpus)


def test_gpus_are_not_metered_as_processors(tmp_path: Path) -> None:
    gpus = {"v100": {"kind": "cuda", "per_node": 2, "memory_gib": 32, "meter": "rapl"}}
    with pytest.raises(SiteError, match="meter: rapl reads processors"):
        make_site(tmp_path, gpus=gpus)
