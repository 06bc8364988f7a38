"""Averages of the weights of any width, made after training (Karras et al. 2024, section 3 and appendix C).

The power-function average with exponent γ counts the weights of step τ in proportion to τ^γ, up to the step t where it
ends. Its width σ_rel is the standard deviation of this profile in units of t: 0.05 is narrow and follows the newest
weights, 0.25 goes back over most of training. Training keeps two of them and stores both now and then; a sum of the
stored ones has, nearly, the profile of any other.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float, Int

WIDTHS = (0.05, 0.10)  # those that training keeps
NARROWEST, WIDEST = 0.02, 0.25  # that can be made of these


def exponent(width: float) -> float:
    """The γ of a width σ_rel = (γ + 1)^½ (γ + 2)^-1 (γ + 3)^-½, 0 < σ_rel < 0.28: a root of a cubic (section 3.1)."""
    square = width**-2
    return float(np.max(np.roots([1, 7, 16 - square, 12 - square]).real))


def stored_steps(count: int, stop: int) -> tuple[int, ...]:
    """The steps at which a run stores its averages, evenly over training with the last at its end.

    Args:
      count: training.averages, how many.
      stop: training.n_iters.
    """
    return tuple(stop * i // count for i in range(1, count + 1))


def start(params: Any) -> dict[str, Any]:
    """The averages before the first step, by width; the first update replaces them."""
    return {str(width): jax.tree.map(jnp.copy, params) for width in WIDTHS}


def updated(averages: dict[str, Any], params: Any, step: Int[Array, ""]) -> dict[str, Any]:
    """The averages with the weights of one more step: β θ_average + (1 − β) θ, β = (1 − 1/n)^(γ + 1) (section 3.1).

    The profile after n steps is then exactly the power function, integrated over each step.

    Args:
      averages: by width.
      params: the weights after the step.
      step: its number n, 1 for the first.
    """

    def one(width: str, average: Any) -> Any:
        rate = -jnp.expm1((exponent(float(width)) + 1) * jnp.log1p(-1 / step))  # 1 − β, and 1 for the first step
        return jax.tree.map(lambda a, p: a - rate * (a - p), average, params)

    return {width: one(width, average) for width, average in averages.items()}


def product(t_a: Any, gamma_a: Any, t_b: Any, gamma_b: Any) -> Any:
    """The integral of the product of two profiles (γ + 1) τ^γ / t^(γ + 1) on [0, t], in float64 (appendix C)."""
    power = np.where(t_a < t_b, gamma_b, np.negative(gamma_a))
    numerator = (gamma_a + 1) * (gamma_b + 1) * (t_a / t_b) ** power
    return numerator / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def coefficients(steps: Sequence[int], width: float) -> tuple[Float[np.ndarray, "N 2"], float]:
    """The sum of stored averages whose profile is nearest to that of a width that ends at the last step.

    Least squares over the profiles, in float64. The coefficients add up to 1 (the paper leaves them free): parameters
    that are not trained stay as they are, and an error of the sum would be one of the weights themselves, next to
    which all differences between averages are small.

    Args:
      steps: N of the stored averages, ascending.
      width: that is wanted.

    Returns:
      A coefficient for each step and each of WIDTHS, and ‖profile − wanted profile‖ / ‖wanted profile‖.
    """
    t = np.repeat(np.asarray(steps, np.float64) / steps[-1], len(WIDTHS))
    gamma, wanted = np.tile([exponent(w) for w in WIDTHS], len(steps)), exponent(width)
    gram, right = product(t[:, None], gamma[:, None], t, gamma), product(t, gamma, 1.0, wanted)
    one = np.ones(len(t))
    solved = np.linalg.solve(np.block([[gram, one[:, None]], [one, np.zeros(1)]]), np.append(right, 1.0))[:-1]
    norm = product(1.0, wanted, 1.0, wanted)
    error = (solved @ gram @ solved - 2 * solved @ right + norm) / norm
    return solved.reshape(-1, len(WIDTHS)), float(max(error, 0.0) ** 0.5)
