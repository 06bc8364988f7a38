"""The terms of every figure for single images: what is computed, and how."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jax.sharding import Mesh

from score_st.array_types import Array, Bool, Float, Int, Key, Shaped, UInt8
from score_st.config import ConfigError, Table
from score_st.data import preprocessing
from score_st.diffusion import discrete_bound, likelihood, losses, probability_flow
from score_st.diffusion.dims import expand, sum_dims
from score_st.diffusion.parametrization import Score
from score_st.model import DiffusionModel, by_image
from score_st.runtime import memory, sharding

PROBES = Table("eval.hutchinson_type", {"Rademacher": jax.random.rademacher, "Gaussian": jax.random.normal})


def _exact(probe: Callable, dims: int) -> None:
    likelihood.check_exact_trace(dims)


# (an entry of PROBES, dimensions of an image) -> what draws the probes, or None for the exact trace
TRACES: Table[Callable[[Callable, int], Callable | None]] = Table(
    "eval.trace", {"hutchinson": lambda probe, dims: probe, "exact": _exact}
)
DEQUANTIZATIONS = Table(
    "eval.dequantization",
    {**preprocessing.DEQUANTIZATIONS, "truncated_normal": "with the noise at ε, without training"},
)
COUNTS = ("nfe", "reached")  # among the results of an image; all others are terms in bits/dim

Terms = Mapping[str, Shaped[Array, " B"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The figures of one image, and how they are computed.

    The noise of an image is a function of the key and of its index in the split, so that batches and devices change
    nothing.

    Attributes:
      model: the diffusion model, with the dequantization of the evaluation.
      solver: integrates the flow.
      probe: (key, shape) -> a Hutchinson probe; None for the exact trace.
      probes: how many of them for an image.
      log_mass: log mass of the discretized decoder, for lossless figures; None for densities.
      half_bin: half the width of a level for truncated normal dequantization; 0 for any other.
      samples: K of the importance-weighted bound of truncated normal dequantization.
      lambda_: names the family of reverse SDEs; 0 is the probability flow, and λ = 1 in the bound.
      labels: the class of each image of the split, for a network that is told classes.
      discrete: DDPM's bound, where it is wanted.
    """

    model: DiffusionModel
    solver: probability_flow.Solver
    probe: Callable | None
    probes: int = 1
    log_mass: Callable | None = None
    half_bin: float = 0.0
    samples: int = 1
    lambda_: float = 0.0
    labels: Int[Array, " N"] | None = None
    discrete: discrete_bound.DiscreteBound | None = None

    def _labels(self, indices: Any) -> Any:
        """Returns the classes of these images, if there are any."""
        return None if self.labels is None else jnp.asarray(self.labels)[indices]

    def _score(self, params: Any, indices: Any) -> Score:
        """Returns the score, given the classes of these images."""
        return self.model.score(params, labels=self._labels(indices))

    @functools.cached_property
    def compiled(self) -> dict[str, Callable]:
        """All that takes params, jitted: programs that all weights of a model share."""
        # one program for both starts of the flow: it takes longer to compile than small networks take to run
        flow = lambda params, images, indices, from_x0, key: self.nll(params, images, indices, key, from_x0)
        others: dict[str, Callable] = {"nelbo": self.nelbo, "nelbo_discrete": self.nelbo_discrete}
        others |= {"loss_at": self.loss_at, "gradient_of": self.gradient_of}
        return {name: jax.jit(function) for name, function in {"nll": flow, **others}.items()}

    def bits(self, nats: Any) -> Any:
        """Converts a term from nats an image to bits a dimension; `offset` is added once to their sum."""
        return nats / (np.prod(self.model.image_shape) * np.log(2))

    def offset(self, name: str) -> float:
        """Returns the bits/dim from the density of scaled data to levels, for one of `bits_per_dim.FIGURES`."""
        scaler, of_levels = self.model.scaler, ("nll", "nelbo", "nelbo_discrete")
        lossless = self.log_mass is not None and name in of_levels
        return float(likelihood.bits_per_dim(0.0, 1, scaler.num_levels, scaler.centered, lossless))

    def _inputs(self, images: Any, indices: Any, key: Any) -> tuple:
        """Returns x, two normal draws like x, and the probes [B, m, H, W, C] or None."""
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 5))(indices)
        shape = images.shape[1:]
        draw = lambda function, k, shape=shape: jax.vmap(lambda key: function(key, shape))(keys[:, k])
        x = self.model.scaler.forward(images, draw(jax.random.uniform, 0))
        probes = draw(self.probe, 3, (self.probes, *shape)).astype(x.dtype) if self.probe else None
        return x, draw(jax.random.normal, 1), draw(jax.random.normal, 2), probes

    def _flow(self, params: Any, x: Any, indices: Any, probes: Any) -> tuple[dict, dict]:
        model = self.model

        def nll(labels: Any, x: Any, probes: Any) -> dict:
            score = model.score(params, labels=labels)
            return vars(likelihood.nll(score, model.sde, x, probes, self.solver, self.lambda_))

        result = by_image(nll, self._labels(indices), x, probes)
        counts = {"nfe": result["evaluations"], "reached": result["reached"]}
        return {"prior": self.bits(result["prior"]), "trace": self.bits(result["trace"])}, counts

    def _reconstruction(self, params: Any, x: Any, indices: Any, z: Any) -> Any:
        model = self.model
        eps = jnp.full(len(x), model.sde.eps)
        return self.bits(losses.reconstruction(self._score(params, indices), model.sde, x, eps, z, self.log_mass))

    def nll(
        self,
        params: Any,
        images: Shaped[Array, "B H W C"],
        indices: Int[Array, " B"],
        key: Key[Array, ""],
        from_x0: Bool[Array, ""] | bool = False,
    ) -> Terms:
        """Returns the terms of the NLL in bits/dim [B], its network evaluations and whether the solver arrived.

        Args:
          params: the network's weights.
          images: of integers.
          indices: of the images in their split.
          key: for all noise.
          from_x0: starts the flow at x_0 and leaves the reconstruction 0, as earlier papers do.
        """
        if self.half_bin:
            return self._importance_weighted(params, images, indices, key)
        x, z, _, probes = self._inputs(images, indices, key)
        mean, std = self.model.sde.marginal(x, jnp.full(len(x), self.model.sde.eps))
        terms, counts = self._flow(params, jnp.where(from_x0, x, mean + expand(std, x) * z), indices, probes)
        # log p(x_ε|x_0) of this x_ε instead of its mean, the entropy: -log p(x_ε) spreads by as much
        noise = 0.5 * (math.prod(x.shape[1:]) - sum_dims(jnp.square(z)))
        reconstruction = self._reconstruction(params, x, indices, z) + self.bits(noise)
        return terms | {"reconstruction": jnp.where(from_x0, 0.0, reconstruction)} | counts

    def density(
        self, params: Any, x: Float[Array, "B H W C"], indices: Int[Array, " B"], key: Key[Array, ""]
    ) -> Terms:
        """Returns the same for -log p by the flow from x, which is scaled already, without dequantization."""
        terms, counts = self._flow(params, x, indices, self._inputs(x, indices, key)[3])
        return terms | counts

    def _importance_weighted(self, params: Any, images: Any, indices: Any, key: Any) -> Terms:
        """Returns the terms of the truncated normal bound.

        They are means over K samples; `importance` is what the mean of the K ratios gains over the mean of their
        logarithms.
        """

        def sample(k: Any) -> tuple[dict, dict]:
            x, _, _, probes = self._inputs(images, indices, jax.random.fold_in(key, k))
            keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(key, k), i))(indices)
            u = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:]))(keys)
            start, log_q = likelihood.truncated_normal(self.model.sde, x, self.half_bin, u)
            terms, counts = self._flow(params, start, indices, probes)
            return terms | {"dequantization": self.bits(log_q)}, counts

        terms, counts = jax.lax.map(sample, jnp.arange(self.samples))
        nats = sum(terms.values()) / self.bits(1.0)
        gain = -self.bits(logsumexp(-nats, axis=0) - jnp.log(self.samples) + jnp.mean(nats, axis=0))
        means = {name: jnp.mean(value, axis=0) for name, value in terms.items()} | {"importance": gain}
        return means | {"nfe": jnp.sum(counts["nfe"], axis=0), "reached": jnp.all(counts["reached"], axis=0)}

    def nelbo(
        self,
        params: Any,
        images: UInt8[Array, "B H W C"],
        indices: Int[Array, " B"],
        u: Float[Array, " B"],
        key: Key[Array, ""],
    ) -> Terms:
        """Returns the terms of the bound in bits/dim [B], at the importance-sampled time of u, uniform on [0, 1)."""
        x, z, z_rec, _ = self._inputs(images, indices, key)
        model = self.model
        prior, diffusion, entropy = likelihood.nelbo(
            self._score(params, indices), model.sde, x, u, z, self.lambda_ or 1.0
        )
        terms = jax.tree.map(self.bits, {"prior": prior, "diffusion": diffusion, "entropy": entropy})
        return terms | {"reconstruction": self._reconstruction(params, x, indices, z_rec)}

    def nelbo_discrete(
        self,
        params: Any,
        images: UInt8[Array, "B H W C"],
        indices: Int[Array, " B"],
        u: Float[Array, " B"],
        key: Key[Array, ""],
    ) -> Terms:
        """Returns the terms of DDPM's bound in bits/dim [B], at the step of u, uniform on [0, 1), and at the first."""
        assert self.discrete is not None
        x, z, z_first, _ = self._inputs(images, indices, key)
        model = self.model.score_model(params, labels=self._labels(indices))
        return jax.tree.map(self.bits, self.discrete(model, x, u, z, z_first))

    def loss_at(
        self,
        params: Any,
        images: UInt8[Array, "B H W C"],
        indices: Int[Array, " B"],
        t: Float[Array, ""] | float,
        key: Key[Array, ""],
    ) -> Terms:
        """Returns ½ ‖σ s + z‖² a dimension, in nats [B], at one time t for all images."""
        x, z, _, _ = self._inputs(images, indices, key)
        model = self.model
        error = losses.denoising_error(self._score(params, indices), model.sde, x, jnp.full(len(x), t), z)
        return {"loss": 0.5 * error / np.prod(model.image_shape)}

    def gradient_of(
        self,
        params: Any,
        image: UInt8[Array, "1 H W C"],
        index: Int[Array, " 1"],
        t: Float[Array, ""] | float,
        key: Key[Array, ""],
    ) -> tuple[Any, Float[Array, ""]]:
        """Returns the gradient of one image's `loss_at`, a tree like the parameters, and its squared norm."""
        gradient = jax.grad(lambda params: self.loss_at(params, image, index, t, key)["loss"][0])(params)
        return gradient, _squares(gradient)


def _squares(tree: Any) -> Float[Array, ""]:
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]))


def gradient_moments(
    gradient_of: Callable, params: Any, images: UInt8[Array, "B H W C"], indices: Int[Array, " B"], *arguments: Any
) -> dict[str, float]:
    """Returns ‖E gradient‖² of the loss and the trace of its covariance over images and noise, both unbiased.

    One program per image, since a loop of gradients is slow on a CPU.

    Args:
      gradient_of: `Evaluation.gradient_of`, jitted.
      params: the network's weights.
      images: two or more.
      indices: of the images in their split.
      *arguments: t and key.
    """
    n, total, norms = len(images), None, []
    for i in range(n):
        gradient, squares = gradient_of(params, images[i : i + 1], indices[i : i + 1], *arguments)
        total = gradient if total is None else jax.tree.map(jnp.add, total, gradient)
        norms.append(squares)  # on the device, so that no image waits for the one before
    square_of_mean = float(_squares(total)) / n**2
    variance = (sum(map(float, norms)) / n - square_of_mean) * n / (n - 1)
    return {"gradient_norm2": square_of_mean - variance / n, "gradient_variance": variance}


def check_batch_size(config: Any, model: DiffusionModel, mesh: Mesh) -> None:
    """Raises ConfigError if the devices of the mesh can't share eval.batch_size, or have no room for it."""
    group = max(config.eval.group, 1)
    unit = "the number of devices" + (f" times eval.group={group}" if group > 1 else "")
    sharding.check_divisible("eval.batch_size", config.eval.batch_size, mesh.size * group, unit)
    share = config.eval.batch_size // mesh.size
    together = config.eval.group or share
    needs = {f"{together:,} images at a time": model.least_bytes(together)}
    needs[f"{share:,} images of a batch"] = share * math.prod(model.image_shape)
    needs[f"{config.eval.n_probes:,} probes each"] = 4 * config.eval.n_probes * together * math.prod(model.image_shape)
    asked = f"config.eval.batch_size={config.eval.batch_size} with n_probes={config.eval.n_probes}"
    memory.check(mesh, asked, needs)


def from_config(config: Any, model: DiffusionModel, labels: Any = None) -> Evaluation:
    """Returns the evaluation that `config.eval` describes.

    Args:
      config: all settings.
      model: the diffusion model.
      labels: see `Evaluation`.

    Raises:
      ConfigError: a name is unknown, or there is nothing to compute.
    """
    section = config.eval
    if not section.nll_iter and not section.nelbo_iter and not section.nelbo_discrete_iter:
        raise ConfigError("config.eval.nll_iter=0 and config.eval.nelbo_iter=0: nothing to compute; 1 is once")
    name = section.dequantization or config.data.dequantization
    DEQUANTIZATIONS.choose(name)
    if section.nelbo_discrete_iter and name != "lossless":
        raise ConfigError(
            f"config.eval.nelbo_discrete_iter={section.nelbo_discrete_iter}: DDPM's bound is of the levels "
            f"themselves; eval.dequantization should be lossless, not {name}; 0 leaves the bound out"
        )
    scaler = dataclasses.replace(model.scaler, dequantization=name)
    return Evaluation(
        dataclasses.replace(model, scaler=scaler),
        probability_flow.from_config(section),
        TRACES.choose(section.trace)(PROBES.choose(section.hutchinson_type), math.prod(model.image_shape)),
        section.n_probes,
        losses.log_mass_from_config(config) if name in ("lossless", "truncated_normal") else None,
        losses.half_bin(config) if name == "truncated_normal" else 0.0,
        section.importance_samples,
        section.lambda_,
        labels if model.num_classes else None,
        discrete_bound.from_config(config, model.sde) if section.nelbo_discrete_iter else None,
    )


def total(terms: Terms) -> Float[Array, " B"]:
    """Returns the sum of the terms in bits/dim, without the offset."""
    first, *others = [value for key, value in terms.items() if key not in COUNTS]
    return sum(others, start=first)
