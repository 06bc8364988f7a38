"""The adaptive ODE solver: diffrax, each image with steps of its own, in one compiled loop on the device."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_st.config import choose


def error_norm(error):
    """The largest root mean square of a leaf, so that one number (a log-determinant) counts as much as an image."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in jax.tree.leaves(error)]))


@dataclasses.dataclass(frozen=True)
class Solver:
    """Settings of the solver.

    Attributes:
      rtol, atol: local error allowed a step, in root mean square over one image (1e-5 as officially).
      max_steps: accepted and rejected steps together, for each image.
      method: one of SOLVERS; Dormand-Prince 5(4) is what the official code takes from scipy.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096
    method: str = "Dopri5"

    def solve(self, field: Callable, x, start, end, args=None):
        """Solves dx/ds = field(s, x, args) from `start` to `end` (scalars) for every image of a batch by itself.

        Steps of its own make an image's result independent of the others; the batch takes as long as its slowest, 5 %
        more than the mean. Float64 throughout takes as many steps: networks oscillate in t, and this sets them.

        Args:
          field: (s scalar, state and args of one image) -> its derivative; a state is any pytree, see `error_norm`.
          x, args: pytrees of [B, ...] arrays.

        Returns:
          The states at `end`, the number of evaluations of `field` [B], and whether the end was reached [B]: where it
          was not (max_steps ran out, or the state left the finite numbers), the state is where the solver stopped.
        """
        import diffrax  # takes longer to import than jax

        method = getattr(diffrax, self.method)()
        tableau = method.tableau

        def one(x, args):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                method,
                start,
                end,
                None,
                x,
                args,
                # proportional and integral: half the error of plain control for as many evaluations
                stepsize_controller=diffrax.PIDController(
                    self.rtol, self.atol, pcoeff=0.4, icoeff=0.3, norm=error_norm
                ),
                max_steps=self.max_steps,
                adjoint=diffrax.ForwardMode(),
                throw=False,
            )
            y = jax.tree.map(lambda a: a[0], solution.ys)
            # the last stage of a step is the first of the next; two more to choose the first step
            evaluations = (tableau.num_stages - tableau.fsal) * solution.stats["num_steps"] + 2
            return y, evaluations, solution.result == diffrax.RESULTS.successful

        return jax.vmap(one)(x, args)


SOLVERS = {name: name for name in ("Dopri5", "Tsit5", "Dopri8", "Bosh3")}  # as diffrax has them


def from_config(section) -> Solver:
    """Reads rtol, atol and (eval) max_steps and solver of a section of the configuration."""
    method = choose(SOLVERS, section.get("solver", "Dopri5"), "eval.solver")
    return Solver(section.rtol, section.atol, section.get("max_steps", Solver.max_steps), method)
