"""Bits/dim: the official values for given noise, probabilities that sum to one, the figures and their errors."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from support.gaussian import SDES, Gaussian
from support.official import FIXTURES, OfficialRVE, OfficialVP, family, nhwc

from score_st import config
from score_st.data import preprocessing
from score_st.diffusion import likelihood, losses, parametrization, probability_flow, sde, time_sampling
from score_st.diffusion.dims import expand, sum_dims
from score_st.evaluation import bits_per_dim, image_terms, runner
from score_st.model import DiffusionModel

OFFICIAL = np.load(FIXTURES / "likelihood.npz")
BITS = 3072 * np.log(2)


@functools.cache
def official(name: str):
    """Of family a or c: the SDE with official rounding, x, the official draws, and a compiled function.

    It maps (t [B], x, probe, λ) to the flow at t, the probe through its Jacobian onto itself [B], and the score.
    """
    settings, model, params, _ = family(name)
    diffusion = OfficialVP() if name == "a" else OfficialRVE(sigma_min=1e-3, sigma_max=50.0, eta=1e-3)
    function = parametrization.from_config(settings, diffusion).score(model.apply(params))
    draws = {key: jnp.asarray(nhwc(OFFICIAL[f"in/{key}"])) for key in ("eps_hutch", "z_pert", "z_rec", "z_elbo")}
    img = jnp.asarray(nhwc(OFFICIAL["in/img"]))

    @jax.jit
    def push(t, x, probe, lambda_):
        flow = lambda x: probability_flow.flow_at(function, diffusion, t, x, lambda_)
        value, tangent = jax.jvp(flow, (x,), (probe,))
        return value, sum_dims(tangent * probe), function(x, t)

    return diffusion, 2 * img - 1 if settings.data.centered else img, draws, push


@pytest.fixture
def x64():
    """Single precision stays, but the official float64 σ can be computed."""
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", ["a", pytest.param("c", marks=pytest.mark.slow)])
def test_official_drift_and_divergence(name, x64):
    """Of the flow in t, at three times, relative to the largest of each time."""
    atol = {"a": 1e-5, "c": 5e-5}[name]  # c embeds log σ as angles up to 400, whose last bit in float32 is 3e-5
    diffusion, x, draws, push = official(name)
    for i, t in enumerate(OFFICIAL[f"{name}/none/rhs/t"]):
        t = jnp.full(2, t)
        mean, std = diffusion.marginal(x, t)
        drift, divergence, _ = push(t, mean + expand(std, x) * draws["z_pert"], draws["eps_hutch"], 0.0)
        speed = -diffusion.diffusion2(t) / jnp.square(std)  # dlogSNR/dt
        for ours, theirs in (
            (expand(speed, x) * drift, nhwc(OFFICIAL[f"{name}/none/rhs/drift"][i])),
            (speed * divergence, OFFICIAL[f"{name}/none/rhs/div"][i]),
        ):
            np.testing.assert_allclose(ours / np.abs(theirs).max(), theirs / np.abs(theirs).max(), atol=atol)


@pytest.mark.parametrize("name", ["a", "c"])
def test_official_residual_and_bound(name, x64):
    """The official bound is ours in its other form: E‖σ s + z‖² by partial integration over x_t (Song et al. 2021b).

    -log π(x_T) + ∫ g²/σ² (½ ‖σ s‖² + ∇·(σ² s - σ² f/g²)) dt, where the last is the flow of λ = 1 in logSNR.
    """
    diffusion, x, draws, push = official(name)
    function = lambda x, t: push(t, x, draws["eps_hutch"], 1.0)[2]
    for first in (1e-5, 1e-3) if name == "a" else (1e-5,):  # officially RVE's integral is that of ε = 1e-5 alone
        eps, tag = jnp.full(2, first, jnp.float32), f"eps{first}"
        for kind in ("none", "lossless"):
            log_mass = functools.partial(
                losses.discretized_gaussian, low=-1.0, high=1.0, half_bin=1 / 255, cdf=losses.tanh_cdf, floor=1e-12
            )
            if name == "c":  # in [0, 1]
                log_mass = functools.partial(log_mass, low=0.0, half_bin=0.5 / 255)
            args = (function, diffusion, x, eps, draws["z_rec"], None if kind == "none" else log_mass)
            ours, theirs = losses.reconstruction(*args), OFFICIAL[f"{name}/{kind}/residual_scoreflow_{tag}"]
            np.testing.assert_allclose(ours / BITS, theirs / BITS, atol=1e-5)
        t, z = (OFFICIAL[f"{name}/elbo/{key}_{tag}"] for key in ("t", "Z"))
        # times T - ε, which does not belong there; RVE's Z is another constant, put into the bound
        integral = (1 - first) * (z if name == "a" else 2 * np.log(diffusion.sigma_max / diffusion.sigma_min))
        mean, std = diffusion.marginal(x, t)
        x_t = mean + expand(std, x) * draws["z_elbo"]
        _, divergence, s = push(t, x_t, draws["eps_hutch"], 1.0)
        squares = sum_dims(jnp.square(expand(std, x) * s))
        mean, std = diffusion.marginal(x, jnp.ones(2, jnp.float32))
        prior = diffusion.prior.log_density(mean + expand(std, x) * nhwc(OFFICIAL["in/z_prior"]))
        ours = (integral * (divergence + 0.5 * squares) - prior) / BITS + OFFICIAL[f"{name}/none/offset"]
        np.testing.assert_allclose(ours, OFFICIAL[f"{name}/none/nelbo_bpd_{tag}"], atol=1e-5)


def test_official_nll():
    """From x_ε with the residual; the official solver itself is up to 1.6e-3 bits/dim off for other images."""
    settings, model, params, _ = family("a")
    last = max(params, key=lambda module: int(module.split("_")[-1]))
    scaled = params | {last: jax.tree.map(lambda a: a * OFFICIAL["a/none/nll_out_scale"], params[last])}
    diffusion, x, draws, _ = official("a")
    function = parametrization.from_config(settings, diffusion).score(model.apply(scaled))
    x, (probe, z, z_rec) = x[:1], (draws[key][:1] for key in ("eps_hutch", "z_pert", "z_rec"))
    eps = jnp.full(1, diffusion.eps)
    mean, std = diffusion.marginal(x, eps)
    solver = probability_flow.Solver(7e-5, 7e-5, method="Bosh3")
    run = jax.jit(lambda x: likelihood.nll(function, model.sde, x, probe[:, None], solver))
    result = run(mean + expand(std, x) * z)
    nats = result.total + losses.reconstruction(function, diffusion, x, eps, z_rec)
    assert bool(result.reached.all())
    np.testing.assert_allclose(
        nats / BITS + OFFICIAL["a/none/offset"], OFFICIAL["a/none/nll_correct_bpd"][:1], atol=1e-3
    )


LEVELS = 3
PAIRS = np.stack(np.meshgrid(*[range(LEVELS)] * 2), -1).reshape(-1, 1, 2, 1).astype(np.uint8)
PAIRS_P = np.random.default_rng(0).dirichlet(np.ones(len(PAIRS)))


def pairs_score(diffusion):
    """Of two dependent pixels with three levels each, all values with their probabilities."""
    centers = jnp.asarray(PAIRS, jnp.float32) * 2 / (LEVELS - 1) - 1

    def score(x, t):
        alpha, sigma = (expand(c, x) for c in (diffusion.alpha(t), diffusion.sigma(t)))
        difference = alpha[:, None] * centers - x[:, None]
        logits = jnp.log(PAIRS_P) - 0.5 * jnp.sum(jnp.square(difference / sigma[:, None]), axis=(2, 3, 4))
        return jnp.einsum("bk,bkhwc->bhwc", jax.nn.softmax(logits), difference) / sigma**2

    return score


@dataclasses.dataclass(frozen=True)
class ScoreModel(DiffusionModel):
    """A function of the parameters that returns a score, instead of a network."""

    function: Callable = None

    def score(self, params, dropout_key=None, labels=None):
        return self.function(params)


def toy(diffusion, function, shape, levels, dequantization="lossless", **options):
    """An evaluation of a score function, or of one with parameters, instead of a network."""
    model = DiffusionModel.from_config(config.load("vp/DIGITS/ddpmpp_nll_st"))
    scaler = preprocessing.Scaler(levels, True, dequantization)
    parts = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    model = ScoreModel(**parts | {"image_shape": shape, "sde": diffusion, "scaler": scaler}, function=function)
    half_bin = 1 / (levels - 1)
    log_mass = functools.partial(losses.discretized_gaussian, low=-1.0, high=1.0, half_bin=half_bin)
    both = lambda key, shape: jnp.broadcast_to(jnp.array([[1, 1], [1, -1.0]]).reshape(2, 1, 2, 1), shape)
    options = dict(probe=both, probes=2, log_mass=log_mass) | options
    options["half_bin"] = half_bin if dequantization == "truncated_normal" else 0.0
    return image_terms.Evaluation(model, probability_flow.Solver(1e-5, 1e-5), **options)


@pytest.mark.parametrize("dequantization", ["lossless", "truncated_normal"])
def test_probabilities_of_all_values_sum_to_one(dequantization):
    """2^-bits of the nine values of two pixels, each its own probability: the score is exact."""
    diffusion = sde.VP(
        eps=0.005, beta_max=40.0
    )  # σ_ε is 1/30 of the levels' distance, and nothing of x_0 is left at T
    evaluation = toy(diffusion, lambda params: pairs_score(diffusion), (1, 2, 1), LEVELS, dequantization)
    terms = jax.jit(evaluation.nll)({}, PAIRS, jnp.arange(len(PAIRS)), jax.random.key(0))
    assert evaluation.offset("nll") == 0 and bool(terms["reached"].all())
    p = 2.0 ** -(2 * image_terms.total(terms))
    np.testing.assert_allclose(p, PAIRS_P, rtol=2e-3)
    np.testing.assert_allclose(p.sum(), 1, atol=1e-3)


def test_exact_trace():
    """Without probes: the figure is that of probes which give the trace, and of the same noise."""
    diffusion = sde.VP(eps=0.005, beta_max=40.0)
    results = [
        jax.jit(toy(diffusion, lambda params: pairs_score(diffusion), (1, 2, 1), LEVELS, **options).nll)(
            {}, PAIRS, jnp.arange(len(PAIRS)), jax.random.key(0)
        )
        for options in ({}, {"probe": None})
    ]
    for name in ("trace", "prior", "reconstruction"):
        np.testing.assert_allclose(results[1][name], results[0][name], atol=1e-4)
    exact = {"eval.trace": "exact"}
    settings = config.load("vp/DIGITS/ddpmpp_nll_st", exact)
    assert image_terms.from_config(settings, DiffusionModel.from_config(settings)).probe is None
    large = config.load("vp/DIGITS/ddpmpp_nll_st", exact | {"data.image_size": "80"})
    with pytest.raises(config.ConfigError, match="eval.trace=exact: .* 6400 dimensions .* at most 4096 are allowed"):
        image_terms.from_config(large, DiffusionModel.from_config(large))


def test_importance_weighted_bound_tightens():
    """Truncated normal dequantization of a continuous model: above the exact mass of the bins, less so with more."""
    diffusion = SDES["vesde"]
    model, levels = Gaussian(0.1, 0.02), 41  # σ_ε = 0.01 and bins of ±0.025: the density varies in a bin
    one = lambda key, shape: jnp.ones(shape)
    images, indices = jnp.full((256, 1, 1, 1), 22, jnp.uint8), jnp.arange(256)
    evaluations = [
        toy(
            diffusion,
            lambda params: model.score(diffusion),
            (1, 1, 1),
            levels,
            "truncated_normal",
            probe=one,
            probes=1,
            samples=k,
        )
        for k in (1, 16)
    ]
    bits = [image_terms.total(jax.jit(m.nll)({}, images, indices, jax.random.key(1))) for m in evaluations]
    std = np.hypot(0.02, float(diffusion.sigma(jnp.float32(diffusion.eps))))
    center, half = 22 / 20 - 1, 1 / 40
    exact = -np.log2(np.diff(stats.norm.cdf([center - half, center + half], 0.1, std))[0])
    means, errors = [b.mean() for b in bits], [b.std() / 16 for b in bits]
    assert exact - 3 * errors[1] < means[1] < means[0] - 3 * errors[0]
    np.testing.assert_allclose(means[1], exact, atol=0.02)
    # with one sample, the gap is the relative entropy of q to the model within the bin
    v = np.linspace(center - half, center + half, 20001)
    q = stats.truncnorm(-half / 0.01, half / 0.01, center, 0.01).pdf(v)
    kl = np.trapezoid(q * np.log2(q / (stats.norm(0.1, std).pdf(v) / 2**-exact)), v)
    np.testing.assert_allclose(means[0] - exact, kl, atol=4 * errors[0] + 2e-3)


@pytest.mark.parametrize("lambda_", [0.5, 1.0, 2.0])
def test_bound_of_the_reverse_sde_of_lambda(lambda_):
    """Its diffusion term is the sum of relative entropies of a fine chain of generalized DDIM (Song et al. 2020)."""
    diffusion, model, x0, n = SDES["vpsde"], Gaussian(0.1, 0.4), 0.7, 16000
    with jax.enable_x64(True):
        function = model.score(diffusion)
        ends = diffusion.logsnr(jnp.array([diffusion.eps, 1.0]))
        u, nodes = (jnp.arange(n) + 0.5) / n, jnp.array([-1.0, 1.0])  # exact for a quadratic
        x = jnp.full((n, 1, 1, 1), x0)
        ours = [likelihood.nelbo(function, diffusion, x, u, jnp.full_like(x, z), lambda_)[1].mean() for z in nodes]
        t = diffusion.time(jnp.linspace(ends[0], ends[1], n + 1))
        alpha, sigma = diffusion.alpha(t), diffusion.sigma(t)
        # x_s given x_t and x_0 keeps p(x_s | x_0); its noise is λ times that of the reverse SDE
        noise2 = lambda_**2 * sigma[:-1] ** 2 * -jnp.expm1(-(ends[0] - ends[1]) / n)
        shift = alpha[:-1] - alpha[1:] * jnp.sqrt(sigma[:-1] ** 2 - noise2) / sigma[1:]
        chain = []
        for z in nodes:
            x_t = (alpha * x0 + sigma * z)[1:].reshape(-1, 1, 1, 1)
            guess = parametrization.denoise(function, diffusion, x_t, t[1:]).ravel()
            chain.append(jnp.sum((shift * (x0 - guess)) ** 2 / (2 * noise2)))
    np.testing.assert_allclose(np.mean(ours), np.mean(chain), rtol=5e-3)


def test_flow_of_lambda():
    diffusion, model = SDES["vpsde"], Gaussian()
    t, x = jnp.array([0.01, 0.5]), jnp.full((2, 1, 1, 1), 0.3)
    s, g2 = model.score(diffusion)(x, t).ravel(), diffusion.diffusion2(t)
    drift = diffusion.drift(t) * 0.3 - 0.5 * (1 + 0.5**2) * g2 * s
    ours = probability_flow.flow(model.score(diffusion), diffusion, diffusion.logsnr(t), x, 0.5).ravel()
    np.testing.assert_allclose(ours, -drift * diffusion.sigma(t) ** 2 / g2, rtol=1e-4)


@pytest.mark.parametrize("name", probability_flow.SOLVERS)
def test_evaluations_are_counted(name):
    """And the solution of dx/ds = -x is exact to the tolerance."""
    calls, solver = [], probability_flow.Solver(1e-4, 1e-4, method=name)

    def field(s, x, _):
        jax.debug.callback(lambda s: calls.append(float(s)), s)
        return -x

    x, evaluations, _ = jax.jit(lambda x: solver.solve(field, x, jnp.float32(0), jnp.float32(2)))(jnp.ones((1, 2)))
    jax.effects_barrier()
    assert abs(len(calls) - int(evaluations[0])) <= 1
    np.testing.assert_allclose(x, np.exp(-2), atol=1e-3)


def test_errors_over_images_and_repeats():
    """Of a mean over images: what images differ by, without the noise of the estimator; and what the noise leaves."""
    rng = np.random.default_rng(0)
    n, count = 4000, 8
    image = rng.normal(3.0, 0.5, n)
    u = [np.asarray(time_sampling.stratified(jax.random.key(r), (n,))) for r in range(count)]
    repeats = [{"prior": image, "trace": 4 * (a - 0.5)} for a in u]
    figures = bits_per_dim.summary("nelbo", repeats, 1.0)
    assert figures["nelbo"] == pytest.approx(1 + image.mean(), abs=1e-3)
    assert figures["nelbo_stderr_images"] == pytest.approx(0.5 / n**0.5, rel=0.25)
    assert figures["nelbo_stderr_repeats"] < 1e-3  # times are stratified over the images
    assert bits_per_dim.summary("nelbo", repeats[:1], 0.0)["nelbo_stderr_images"] is None
    reached = np.arange(n) != 7
    lost = [{"prior": np.where(reached, image, np.nan), "nfe": np.full(n, 8), "reached": reached}]
    figures = bits_per_dim.summary("nll", lost, 0.0)
    assert figures["nll_unreached"] == [7] and figures["nll"] == pytest.approx(image[reached].mean())
    assert figures["nll_stderr_repeats"] is None and figures["nll_nfe"] == 8


def test_gradient_by_time():
    """Mean and covariance of the gradient, against one gradient an image."""
    diffusion = SDES["vpsde"]
    params = {"a": jnp.float32(-0.3), "b": jnp.ones((2, 2, 1))}
    images = jax.random.randint(jax.random.key(0), (6, 2, 2, 1), 0, 5).astype(jnp.uint8)
    args = (images, jnp.arange(6), jnp.float32(0.4), jax.random.key(1))
    score = lambda params: lambda x, t: params["a"] * x + params["b"]
    evaluation = toy(diffusion, score, (2, 2, 1), 5, probe=jax.random.rademacher)
    result = image_terms.gradient_moments(jax.jit(evaluation.gradient_of), params, *args)
    gradients = jax.jacobian(lambda params: evaluation.loss_at(params, *args)["loss"])(params)
    gradients = np.concatenate([np.asarray(leaf).reshape(6, -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    variance = gradients.var(0, ddof=1).sum()
    np.testing.assert_allclose(result["gradient_variance"], variance, rtol=1e-4)
    np.testing.assert_allclose(result["gradient_norm2"], (gradients.mean(0) ** 2).sum() - variance / 6, rtol=1e-3)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"eval.from_x0": "True"}, {"nll", "nll_from_x0", "nelbo", "nelbo_without_residual"}),
        ({}, {"nll", "nelbo", "nelbo_without_residual"}),
        ({"eval.nll_iter": "0"}, {"nelbo", "nelbo_without_residual"}),
        ({"eval.nelbo_iter": "0"}, {"nll"}),
        (
            {"eval.nelbo_iter": "0", "eval.nelbo_discrete_iter": "2", "eval.dequantization": "lossless"},
            {"nll", "nelbo_discrete"},
        ),
        ({"eval.residual": "False"}, {"nll_from_x0", "nelbo_without_residual"}),
    ],
)
def test_what_is_left_out(changes, names):
    settings = config.load("vp/DIGITS/ddpmpp_nll_st", changes)

    class Runner(runner.ImageRunner):
        def __init__(self):
            self.images, self.seed = np.zeros((4, 8, 8, 1), np.uint8), 0

        def seconds_per_image(self, name):
            return 1.0

        def __call__(self, name, *_, **__):
            counts = {} if name.startswith("nelbo") else {"nfe": np.ones(4), "reached": np.ones(4, bool)}
            return {"prior": np.ones(4), "reconstruction": np.zeros(4)} | counts

    model = DiffusionModel.from_config(settings)
    figures = bits_per_dim.compute(image_terms.from_config(settings, model), Runner(), settings.eval)
    assert {name for name in bits_per_dim.FIGURES if name in figures} == names


def test_nothing_to_compute():
    settings = config.load("vp/DIGITS/ddpmpp_nll_st", {"eval.nll_iter": "0", "eval.nelbo_iter": "0"})
    with pytest.raises(config.ConfigError, match="nothing to compute; 1 is once"):
        image_terms.from_config(settings, DiffusionModel.from_config(settings))


def test_means_by_class():
    """Over the images of a class whose solver arrived in every repeat; a class without images has none."""
    labels = np.array([0, 2, 2, -1, 0, 2])
    prior = np.array([[1.0, 2, 3, 4, 5, 6], [3.0, 4, 5, 6, 7, 8]])
    reached = np.array([[True] * 6, [True, True, True, True, False, True]])
    terms = lambda i: {"prior": prior[i], "trace": np.full(6, 0.5), "nfe": prior[i], "reached": reached[i]}
    result = bits_per_dim.by_class("nll", [terms(0), terms(1)], 7.0, labels)
    assert result == {"nll_by_class": [9.5, None, pytest.approx(14 / 3 + 7.5)], "images_by_class": [1, 0, 3]}
