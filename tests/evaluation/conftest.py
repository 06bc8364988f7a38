"""A run with random weights, and the words of a command on it."""

import jax
import numpy as np
import pytest
from support.runs import DIGITS, SETTINGS

from score_st import config
from score_st.runtime.workdir import claim_workdir
from score_st.training import checkpoints, step


@pytest.fixture(scope="session")
def workdir(tmp_path_factory, one_device):
    """A workdir of the digits with a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    settings = config.load(DIGITS, SETTINGS)
    claim_workdir(folder, settings, bool)
    with checkpoints.manager(folder) as manager:
        setup = step.from_config(settings, one_device)
        checkpoints.save(manager, jax.jit(setup.create)(jax.random.key(0)))
    return folder


@pytest.fixture(scope="session")
def arguments(workdir):
    """Returns the words of a command on the workdir, with more of them."""
    settings = [f"--config.{key}={value}" for key, value in SETTINGS.items()]
    return lambda *more: ["--config", DIGITS, "--workdir", str(workdir), *settings, *map(str, more)]


@pytest.fixture(scope="session")
def photographs():
    """Returns n smooth color images with noise, uint8 [n, height, width, 3]."""
    from score_st.evaluation import inception

    def photographs(n: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        small = rng.uniform(0, 255, (n, 4, 4, 3))
        rows, columns = (inception.resize_matrix("tf1", 4, size) for size in (height, width))
        images = np.einsum("ih,nhwc,jw->nijc", rows, small, columns) + rng.normal(0, 20, (n, height, width, 3))
        return images.round().clip(0, 255).astype(np.uint8)

    return photographs
