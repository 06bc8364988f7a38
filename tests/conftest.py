"""Eight CPU devices, and a compilation cache shared by the workers and the processes that tests start.

Each file of tests runs in one worker, which makes its fixtures and traces its programs once. The longest files come
first, so that none is left to one worker at the end.
"""

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.environment import QUICK

FIXTURES = Path(__file__).parent / "fixtures"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK} --xla_force_host_platform_device_count=8"
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ  # a worker has it from pytest
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="score_st_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
gc.set_threshold(50_000, 10, 10)  # tracing makes many objects that live: collecting as often takes a tenth of the time
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each process that a test starts compiles the package
# as on a terminal, also in the background of a script and under nohup, which ignore them for all that they start
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# more than half a minute each
LONG = "diffusion/test_samplers evaluation/test_bits_per_dim runtime/test_distributed test_buckets training/test_step"
LONG += " pytorch/test_checkpoint evaluation/test_generation training/test_loop diffusion/test_likelihood"
LONG += " training/test_stored_weights evaluation/test_sample_quality diffusion/test_stages diffusion/test_losses"
FIRST = [f"{name}.py" for name in LONG.split()]


def pytest_collection_modifyitems(items):
    """The longest files first."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """By file, in the order of collection, where pytest -n is given no other --dist."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def one_device():
    """A mesh of one device: with eight, each compiles for itself."""
    import jax

    from score_st.runtime import sharding

    return sharding.mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def digits():
    """uint8 [1500, 8, 8, 1]."""
    from score_st import config
    from score_st.data import pipeline

    return pipeline.load(config.load("vp/DIGITS/ddpmpp_nll_st"), "train")


@pytest.fixture(scope="session")
def reference():
    """Loads a file of numbers that the official PyTorch code printed."""
    return lambda name: np.load(FIXTURES / f"{name}.npz")


def pytest_sessionfinish():
    if OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
