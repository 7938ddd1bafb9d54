"""What unit tests share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import simulated_nvml


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the simulated NVML library."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc: the simulated NVML library cannot be built")
    return simulated_nvml.build(tmp_path_factory.mktemp("nvml") / "library")
