"""Gradient noise at the weights of a run: what of it comes from τ, and what from all else."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float
from score_st.config import changed, check
from score_st.diffusion import truncation
from score_st.runtime import progress
from score_st.studies.measures import Rows, Setting
from score_st.training import loop
from score_st.training import step as stepping
from score_st.training.state import TrainState

EACH = 2  # gradients for each draw of τ


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Trace of the covariance of a step's gradient, split into E Var(g|τ) + Var E(g|τ), before clipping.

    Every draw of τ has two gradients with other images, times and noise. Arms share all of these; draw by draw only
    what an arm changes differs. Everything is an unbiased estimate: U-statistics of products of gradients.

    Attributes:
      arms: the settings of each by its name; the last one is that with which the means of the others are compared.
      batches: batch sizes.
      draws: gradients of an arm, an even number.
    """

    arms: Mapping[str, Mapping[str, Any]]
    batches: tuple[int, ...] = (32, 128)
    draws: int = 256

    name = "gradients"

    def prepare(self, setting: Setting) -> Callable[[TrainState], Rows]:
        """See `Measure`: a row for each arm and batch size, at the raw weights."""
        programs = {}
        for (arm, settings), size in itertools.product(self.arms.items(), self.batches):
            values = {**settings, "training.batch_size": size}
            config = setting.config.copy_and_resolve_references()
            check(changed(config, {key: str(value).format(batch=size) for key, value in values.items()}))
            setup = stepping.from_config(config, setting.mesh)
            draw = functools.partial(gradient, setup=setup)
            programs[arm, size] = jax.jit(draw), loop.stream(config, setting.images["train"])

        def measure(state: TrainState) -> Rows:
            rows, scale = {}, 1 / adam_scale(state)
            for size in self.batches:
                last = list(self.arms)[-1]
                reference = self._sample(*programs[last, size], state.params, f"{last}, {size}")
                for arm in self.arms:
                    name = f"{arm}, batch {size}"
                    own = self._sample(*programs[arm, size], state.params, name) if arm != last else reference
                    rows[name] = figures(own, own - reference if arm != last else None)
                    rows[name] |= {f"{key} (Adam)": value for key, value in figures(own * scale, None).items()}
                    rows[name]["share above 1"] = float(np.mean(np.linalg.norm(own, axis=1) > 1))
            return rows

        return measure

    def smaller(self, setting: Setting) -> tuple["Gradients", float]:
        """See `measures.Measure`."""
        return dataclasses.replace(self, draws=4 * EACH), self.draws / (4 * EACH)

    def _sample(self, program: Callable, stream: Any, params: Any, name: str) -> Float[np.ndarray, "N P"]:
        bar, rows = progress.Loop(name, 0, self.draws, "gradients", seconds=10), []
        for i in range(self.draws):
            key, tau_key = (jax.random.fold_in(jax.random.key(n), i // every) for n, every in ((1, 1), (2, EACH)))
            rows.append(np.asarray(program(params, stream.inputs(i), key, tau_key)))
            bar(i + 1)
        return np.stack(rows)


def gradient(
    params: Any, batch: stepping.Batch, key: Array, tau_key: Array, *, setup: stepping.TrainStepConfig
) -> Array:
    """Returns the gradient of a step [P], with τ from a key of its own."""
    inputs = stepping.draw(setup, batch, key)
    inputs["tau"] = truncation.sample(setup.truncation, tau_key, setup.groups, len(inputs["x"]))
    tree = stepping.on_devices(stepping.gradient_of_share, setup, 2)(params, inputs, key)[1]
    return flat(tree)


def flat(tree: Any) -> Array:
    """Returns all leaves as one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def adam_scale(state: TrainState) -> Float[np.ndarray, " P"]:
    """Returns √v̂ + 1e-8, by which Adam divides each component of its update (Kingma and Ba 2015, algorithm 1)."""
    is_adam = lambda node: hasattr(node, "nu")
    (adam,) = (node for node in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(node))
    corrected = np.asarray(flat(adam.nu), np.float64) / (1 - 0.999 ** int(adam.count))
    return (np.sqrt(corrected) + 1e-8).astype(np.float32)


def products(rows: Float[np.ndarray, "N P"], width: int = 2**14) -> Float[np.ndarray, "N N"]:
    """Returns all inner products of rows, in float64."""
    parts = (rows[:, i : i + width].astype(np.float64) for i in range(0, rows.shape[1], width))
    return sum((part @ part.T for part in parts), start=np.zeros((len(rows), len(rows))))


def figures(rows: Float[np.ndarray, "N P"], differences: Float[np.ndarray, "N P"] | None) -> dict[str, float]:
    """Returns the parts of the variance, the squared norm of the mean, and how far it is from that of another arm.

    Args:
      rows: gradients, each `EACH` after another with the same τ.
      differences: from those of the other arm, if there is one: the squared norm of their mean is in units of that of
        the gradient's mean, and in standard errors of what it would be if the means were the same.
    """
    gram = products(rows)
    tau = np.arange(len(rows)) // EACH
    same, others = tau[:, None] == tau, tau[:, None] != tau
    same &= ~np.eye(len(rows), dtype=bool)
    within = float(np.mean(np.diag(gram)) - gram[same].mean())
    mean2 = float(gram[others].mean())
    between = float(gram[same].mean()) - mean2
    result = {"variance": within + between, "E Var(g|τ)": within, "Var E(g|τ)": between, "squared mean": mean2}
    if differences is not None:
        groups = differences.reshape(-1, EACH, differences.shape[1]).mean(1)
        gram = products(groups)
        apart = gram[~np.eye(len(groups), dtype=bool)]
        error = (2 * np.mean(apart**2) / len(apart)) ** 0.5
        result |= {"distance of means": float(apart.mean()) / mean2, "in standard errors": float(apart.mean() / error)}
    return result
