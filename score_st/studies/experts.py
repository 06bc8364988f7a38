"""Samples of a cell's network at large noise and of one fixed network at small noise (Kim et al. 2022, table 2)."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from score_st.config import changed, check
from score_st.data.images import Images
from score_st.diffusion import guidance
from score_st.diffusion.linear_sde import SDE
from score_st.diffusion.parametrization import Score
from score_st.evaluation import generation
from score_st.model import CombinedModel, DiffusionModel
from score_st.runtime import resumable
from score_st.studies.measures import SEED as NOISE
from score_st.studies.measures import WEIGHTS, Measure, Rows, Samples, Setting, alone, with_samples
from score_st.studies.training import Trainer
from score_st.training.state import TrainState

SEED = 100  # of the fixed network, which is none of a cell's


@dataclasses.dataclass(frozen=True)
class SameNoise:
    """A model of another SDE with the same α, asked at the time where its σ is the same.

    Attributes:
      model: of the other SDE.
      sde: whose times are given.
    """

    model: DiffusionModel
    sde: SDE

    @property
    def num_classes(self) -> int:
        """That of the model."""
        return self.model.num_classes

    def score(self, params: Any, dropout_key: Any = None, labels: Any = None) -> Score:
        """The score as a function of x and a time of `sde`."""
        score = self.model.score(params, dropout_key, labels)
        return lambda x, t: score(x, self.model.sde.time(self.sde.logsnr(t)))


@dataclasses.dataclass(frozen=True)
class Experts:
    """Distances of samples as `Samples` has them, with a network below some noise that is the same for all cells.

    Attributes:
      num: samples.
      features: entries of `EXTRACTORS`.
      below: the σ/α at which the networks change over.
      fixed: the settings of the fixed network, on top of a cell's: all in which cells differ.
      metrics: of fid and kid.
    """

    num: int
    features: tuple[str, ...]
    below: float
    fixed: Mapping[str, Any]
    metrics: tuple[str, ...] = ("fid", "kid")

    name = "experts"

    def prepare(self, setting: Setting) -> Callable[[TrainState], Rows]:
        """See `Measure`: the row "ema, fixed below 1"."""
        config = setting.config.copy_and_resolve_references()
        check(changed(config, {key: str(value) for key, value in self.fixed.items()}))
        trainer = Trainer(config, setting.images, setting.mesh)
        structure: Any = jax.tree.structure(trainer.step_config.abstract_state.ema)

        def train() -> dict[str, Any]:
            state, _ = trainer.train(trainer.start(SEED), SEED, config.training.n_iters)
            return {str(i): jax.device_get(leaf) for i, leaf in enumerate(jax.tree.leaves(state.ema))}

        key = zlib.crc32(json.dumps([*sorted(self.fixed.items()), config.training.n_iters]).encode())
        stored = resumable.JobFiles(setting.cache, f"fixed-{key:08x}.npz", resumable.NPZ)
        with alone(setting.cache):
            arrays = stored((), train)
        fixed = structure.unflatten([arrays[str(i)] for i in range(structure.num_leaves)])
        fields = {field.name: getattr(setting.model, field.name) for field in dataclasses.fields(DiffusionModel)}
        parts: Any = setting.model, SameNoise(trainer.model, setting.model.sde)
        model = CombinedModel(**fields, parts=parts, combination=guidance.Experts(self.below))
        generate = generation.generator(setting.config, model, NOISE)

        def draw(row: str, state: TrainState) -> Images:
            params = WEIGHTS[row](state), fixed
            return generation.draw(setting.config, model, params, self.num, NOISE, setting.mesh, generate)[0]

        measure = Samples(self.num, self.features, self.metrics, ("ema",)).of(setting, draw)
        return lambda state: {f"ema, fixed below {self.below:g}": measure(state)["ema"]}

    def smaller(self, setting: Setting) -> tuple[Measure, float]:
        """See `Measure`."""
        return with_samples(self, setting)
