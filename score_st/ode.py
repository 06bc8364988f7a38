"""The adaptive ODE solver: diffrax, each image with steps of its own, in one compiled loop on the device."""

import dataclasses
from collections.abc import Callable

import diffrax
import jax


@dataclasses.dataclass(frozen=True)
class Solver:
    """Settings of the solver.

    Attributes:
      rtol, atol: local error allowed a step, in root mean square over the state of one image (1e-5 as officially).
      max_steps: accepted and rejected steps together, for each image.
      method: a diffrax solver; Dormand-Prince 5(4) is what the official code takes from scipy.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 4096
    method: diffrax.AbstractSolver = dataclasses.field(default_factory=diffrax.Dopri5)

    def solve(self, field: Callable, x, start, end, args=None):
        """Solves dx/ds = field(s, x, args) from `start` to `end` (scalars) for every image of a batch by itself.

        Args:
          field: (s scalar, state and args of one image) -> its derivative; a state is any pytree.
          x, args: pytrees of [B, ...] arrays.

        Returns:
          The states at `end`, the number of evaluations of `field` [B], and whether the end was reached [B]: where it
          was not (max_steps ran out, or the state left the finite numbers), the state is where the solver stopped.
        """

        def one(x, args):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                self.method,
                start,
                end,
                None,
                x,
                args,
                stepsize_controller=diffrax.PIDController(self.rtol, self.atol),
                max_steps=self.max_steps,
                adjoint=diffrax.ForwardMode(),
                throw=False,
            )
            y = jax.tree.map(lambda a: a[0], solution.ys)
            # six new stages a step (the seventh is the first of the next), two to choose the first step
            evaluations = 6 * solution.stats["num_steps"] + 2
            return y, evaluations, solution.result == diffrax.RESULTS.successful

        return jax.vmap(one)(x, args)


def from_config(section) -> Solver:
    """Reads rtol, atol and (eval) max_steps of a section of the configuration."""
    return Solver(section.rtol, section.atol, section.get("max_steps", Solver.max_steps))
