"""The probability flow ODE (Song et al. 2021, eq. 13), and the adaptive solver that follows it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from score_st.array_types import Array, Bool, Float, Int
from score_st.checks import ONE_OR_MORE, POSITIVE, check_fields
from score_st.config import Table
from score_st.diffusion.dims import expand
from score_st.diffusion.parametrization import Score
from score_st.diffusion.sde import SDE
from score_st.diffusion.stages import Stage

SOLVERS = Table("eval.solver", {name: name for name in ("Dopri5", "Tsit5", "Dopri8", "Bosh3")})  # classes of diffrax


def flow_at(
    score: Score, sde: SDE, t: Float[Array, " B"], x: Float[Array, "B ..."], lambda_: Float[Array, ""] | float = 0.0
) -> Float[Array, "B ..."]:
    """dx/dlogSNR of the probability flow at t.

    f − ½ (1 + λ²) g² s divided by dlogSNR/dt = −g²/σ². λ > 0 is the drift of a reverse SDE, see `likelihood.nelbo`.
    """
    variance = jnp.square(sde.sigma(t))
    drift = -sde.drift(t) * variance / sde.diffusion2(t)
    return expand(drift, x) * x + expand(0.5 * (1 + lambda_**2) * variance, x) * score(x, t)


def flow(
    score: Score,
    sde: SDE,
    logsnr: Float[Array, " B"],
    x: Float[Array, "B ..."],
    lambda_: Float[Array, ""] | float = 0.0,
) -> Float[Array, "B ..."]:
    """`flow_at` the time of this logSNR. As a function of t the flow is singular at 0; of logSNR it is not."""
    return flow_at(score, sde, jnp.clip(sde.time(logsnr), sde.eps, sde.T), x, lambda_)


def error_norm(error: Any) -> Float[Array, ""]:
    """The largest root mean square of a leaf, so that one number (a log-determinant) counts as much as an image."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in jax.tree.leaves(error)]))


@dataclasses.dataclass(frozen=True)
class Solver:
    """diffrax with a step size of its own for each image, in one compiled loop on the device.

    Attributes:
      rtol: relative local error per step, in root mean square over an image (officially 1e-5).
      atol: absolute local error.
      max_steps: accepted and rejected steps per image.
      method: one of SOLVERS. Dormand-Prince 5(4) is what the official code takes from SciPy.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096
    method: str = "Dopri5"

    def __post_init__(self) -> None:
        """Raises ConfigError where a field is out of its range."""
        check_fields(self, rtol=POSITIVE, atol=POSITIVE, max_steps=ONE_OR_MORE)
        SOLVERS.choose(self.method)

    def solve(
        self, field: Callable, x: Any, start: Float[Array, ""], end: Float[Array, ""], args: Any = None
    ) -> tuple[Any, Int[Array, " B"], Bool[Array, " B"]]:
        """Solves dx/ds = field(s, x, args) from `start` to `end` for each image of a batch by itself.

        Since an image has its own steps, its result does not depend on the others. The batch takes as long as its
        slowest image, 5 % more than the mean. Float64 saves no steps: they follow from how networks oscillate in t.

        Args:
          field: (s, state and args of one image) -> the state's derivative; a state is any pytree, see `error_norm`.
          x: the states at `start`, a pytree of arrays [B, ...].
          start: the first s.
          end: the last s.
          args: a pytree of arrays [B, ...].

        Returns:
          The states at `end`, the NFE, and whether `end` was reached. If it was not (max_steps ran out, or the state
          became non-finite), the state is where the solver stopped.
        """
        import diffrax  # takes longer to import than jax

        method = getattr(diffrax, self.method)()
        tableau = method.tableau
        # proportional and integral control: half the error of integral control, for as many evaluations
        control = diffrax.PIDController(self.rtol, self.atol, pcoeff=0.4, icoeff=0.3, norm=error_norm)

        def one(x: Any, args: Any) -> tuple[Any, Array, Array]:
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                method,
                start,
                end,
                None,
                x,
                args,
                stepsize_controller=control,
                max_steps=self.max_steps,
                adjoint=diffrax.ForwardMode(),
                throw=False,
            )
            y = jax.tree.map(lambda a: a[0], solution.ys)
            # the last stage of a step is the first of the next; two more choose the first step size
            evaluations = (tableau.num_stages - tableau.fsal) * solution.stats["num_steps"] + 2
            return y, evaluations, solution.result == diffrax.RESULTS.successful

        return jax.vmap(one)(x, args)

    def solve_in_stages(
        self,
        field: Callable[[Score], Callable],
        parts: Sequence[Stage],
        sde: SDE,
        x: Any,
        start: Float[Array, ""],
        end: Float[Array, ""],
        args: Any = None,
    ) -> tuple[Any, Int[Array, " B"], Bool[Array, " B"]]:
        """As `solve`, with logSNR as s, one stage after the other: the solver stops where one ends.

        A step across the change from one network to another would be rejected again and again.

        Args:
          field: score -> the field of `solve`.
          parts: the stages of a score function, in the order in which the way from `start` to `end` meets them.
          sde: the diffusion.
          x: as for `solve`.
          start: the first logSNR.
          end: the last logSNR.
          args: as for `solve`.

        Returns:
          As `solve`; NFE counts every network.
        """
        if len(parts) == 1:
            x, evaluations, reached = self.solve(field(parts[0].score), x, start, end, args)
            return x, parts[0].evaluations * evaluations, reached
        batch = len(jax.tree.leaves(x)[0])
        nothing = jnp.zeros(batch, jnp.result_type(int)), jnp.ones(batch, bool)
        evaluations, reached = nothing
        for part in parts:
            low = sde.logsnr(jnp.asarray(part.start, start.dtype)) if part.start < math.inf else -math.inf
            high = sde.logsnr(jnp.asarray(part.end, start.dtype)) if part.end > 0 else math.inf
            first, last = jnp.clip(start, low, high), jnp.clip(end, low, high)
            run = functools.partial(self.solve, field(part.score))
            x, more, there = jax.lax.cond(first == last, lambda x, *_: (x, *nothing), run, x, first, last, args)
            evaluations, reached = evaluations + part.evaluations * more, reached & there
        return x, evaluations, reached


def from_config(section) -> Solver:
    """The solver of config.sampling or config.eval: rtol, atol, and in eval solver and max_steps."""
    method = SOLVERS.choose(section.get("solver", "Dopri5"))
    return Solver(section.rtol, section.atol, section.get("max_steps", Solver.max_steps), method)
