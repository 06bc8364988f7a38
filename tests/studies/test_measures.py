"""What is measured: rows and figures."""

import dataclasses
import threading
import time

import jax
import numpy as np
import pytest
from support import tiny_study

from score_st.data import pipeline
from score_st.evaluation import generation
from score_st.studies import BitsPerDim, LossByTime, measures
from score_st.studies.training import Trainer


@pytest.fixture(scope="module")
def setting(one_device, tmp_path_factory):
    """A cell without training, and its first state."""
    config = tiny_study.STUDY.cells[0].config
    images = {split: pipeline.load(config, split) for split in ("train", "test")}
    trainer = Trainer(config, images, one_device)
    folder = tmp_path_factory.mktemp("cache")
    return measures.Setting(config, trainer.model, images, one_device, folder), trainer.start(0)


def test_the_bound_at_another_smallest_time(setting):
    """It is what a configuration with that time has; before training, both weights are the same."""
    setting, state = setting
    rows = BitsPerDim(images=8, eps=(1e-2,)).prepare(setting)(state)
    assert set(rows) == {"ema", "raw", "ema, ε = 0.01"} and rows["ema"] == rows["raw"]
    coarse = dataclasses.replace(setting.model, sde=setting.model.sde.with_smallest_time(1e-2))
    alone = BitsPerDim(images=8, weights=("ema",)).prepare(dataclasses.replace(setting, model=coarse))(state)
    assert rows["ema, ε = 0.01"] == alone["ema"] != rows["ema"]


def test_the_loss_on_both_sides_of_a_time(setting):
    """Together they are the diffusion term of the bound, whatever the time; up to the noise of the times."""
    setting, state = setting
    sums = []
    for split in (0.01, 0.1):
        rows = LossByTime(images=8, split=split).prepare(setting)(state)
        below, above = rows["ema"].values()
        assert below > 0 and above > 0
        sums.append(below + above)
    assert sums[0] == pytest.approx(sums[1], rel=1e-3)


def test_samples_are_drawn_once(setting):
    """Those of a state, with the noise of all cells, and those of another state anew."""
    setting, state = setting
    drawn, weights = setting.samples("raw", state, 4), state.replace(params=jax.tree.map(np.zeros_like, state.params))
    alone, _ = generation.draw(setting.config, setting.model, state.params, 4, measures.SEED, setting.mesh)
    assert np.array_equal(drawn, alone) and setting.samples("raw", state, 4) is drawn
    assert not np.array_equal(setting.samples("raw", weights, 4), drawn)
    assert np.array_equal(setting.samples("ema", weights, 4), drawn)  # which are those of the first state


def test_integrals_on_both_sides():
    """Exact for a straight line, also where the split is no node."""
    x = np.array([0.0, 1.0, 2.0, 4.0])
    assert measures.integrals(x, 2 * x, 1.5) == pytest.approx((1.5**2, 16 - 1.5**2))
    assert measures.integrals(x, 2 * x, 2.0) == pytest.approx((4, 12))


def test_one_process_at_a_time(tmp_path):
    """The second one begins when the first one has ended."""
    order = []

    def work(name: str, seconds: float) -> None:
        with measures.alone(tmp_path):
            order.append(f"{name} begins")
            time.sleep(seconds)
            order.append(f"{name} ends")

    first = threading.Thread(target=work, args=("first", 0.3))
    first.start()
    while not order:
        time.sleep(0.01)
    work("second", 0)
    first.join()
    assert order == ["first begins", "first ends", "second begins", "second ends"]


def test_every_measure_is_one():
    """Each has a name, and is told apart in stored results by its fields."""
    for part in tiny_study.STUDY.parts.values():
        assert all(isinstance(measure, measures.Measure) for measure in part.measures)
    first, second = (dataclasses.asdict(BitsPerDim(images=n)) for n in (8, 9))
    assert first != second
