"""What every bench shares: threads stated, warm-up, and peers that are named where they are absent."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch


@pytest.fixture
def peer():
    """Imports a peer package, or skips and says which is absent."""

    def load(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"peer absent: {name} ({error})")

    return load


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
