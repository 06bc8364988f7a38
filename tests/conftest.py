"""Eight CPU devices, exact matmuls, and a compilation cache shared by the workers."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from pathlib import Path

import numpy as np
import pytest

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def reference():
    """Loads a file of numbers that the official PyTorch code printed."""
    return lambda name: np.load(FIXTURES / f"{name}.npz")
