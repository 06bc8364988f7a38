"""Laws of the diffusion time t on [τ, T], each with the weight that makes a mean over t the integral it stands for.

A law is a function (sde, τ [B], u [B]) -> (t [B], weight [B]) with u ~ U[0, 1), increasing in u. The loss multiplies
the weight with ½ c(t) ‖σ s + z‖², see `losses`.
"""

import jax
import jax.numpy as jnp


def uniform(sde, tau, u):
    """t ~ U[τ, T], weight T - τ: the mean over t becomes the integral over [τ, T]."""
    span = sde.T - tau
    return tau + u * span, span


def importance(sde, tau, u):
    """Density ∝ g²/σ², weight Z(τ) = ∫ g²/σ² dt = logSNR(τ) - logSNR(T) (Song et al. 2021b; Kim et al. 2022, app. A).

    The law is uniform in logSNR, so that the quantile is closed wherever logSNR has an inverse. ½ Z ‖σ s + z‖² is the
    likelihood-weighted loss.
    """
    start = sde.logsnr(tau)
    z = start - sde.logsnr(jnp.full_like(tau, sde.T))
    return jnp.clip(sde.time(start - u * z), tau, sde.T), z


def reciprocal(sde, tau, u):
    """t uniform in 1/t, RVE's natural law; the weight is ∫ dt/t² over [τ, T], relative to τ = ε.

    With η = σ_min the density ∝ 1/t² is ∝ g²/σ², so this is `importance` up to the constant Z(ε).
    """
    span = 1 / tau - 1 / sde.T
    s = 1 / tau - u * span
    return jnp.clip(1 / s, tau, sde.T), span / (1 / sde.eps - 1 / sde.T)


def mean(law):
    """The same times with weight 1: a mean over [τ, T], as the official code has it for all but importance times."""
    return lambda sde, tau, u: (law(sde, tau, u)[0], jnp.ones_like(tau))


def low_discrepancy(key, n: int):
    """u [n], each uniform on [0, 1), together evenly spread (Kingma et al. 2021, app. I.1)."""
    return jnp.mod(jax.random.uniform(key) + jnp.arange(n) / n, 1.0)


def stratified(key, n: int):
    """u [n], one in each of n equal parts of [0, 1), in random order: each value is independent of its place."""
    order, jitter = jax.random.split(key)
    return (jax.random.permutation(order, n) + jax.random.uniform(jitter, (n,))) / n


LAWS = {"uniform": uniform, "importance": importance, "reciprocal": reciprocal}


def from_config(config):
    """The law of the configuration: RVE draws uniformly in 1/t, the others as training.importance_sampling says."""
    if config.training.sde.lower() == "reciprocal_vesde":
        law = reciprocal
    else:
        law = importance if config.training.importance_sampling else uniform
    return mean(law) if config.training.official_loss and law is not importance else law
