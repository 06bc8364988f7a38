"""Modules of torch-fidelity, whose package imports torchvision, which they do not need."""

import importlib.util
import sys
from unittest import mock

import pytest


def torch_fidelity(name: str):
    """Returns one of its modules, and torch; skips the test if they are not installed."""
    torch = pytest.importorskip("torch")
    missing = (
        [] if importlib.util.find_spec("torchvision") else ["", ".datasets", ".transforms", ".transforms.functional"]
    )
    sys.modules.update({f"torchvision{part}": mock.MagicMock() for part in missing})
    try:
        return pytest.importorskip(f"torch_fidelity.{name}"), torch
    finally:
        for part in missing:
            del sys.modules[f"torchvision{part}"]
