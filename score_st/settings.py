"""Every key of the configuration: its default, its range and its meaning.

The one table of them. A meaning that begins with "ours" is of a key that only this package has. An `ENTRY` is checked
in the `config.Table` of its key, and what keys have to do with each other in `problems`.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from score_st.ranges import (
    COUNT,
    COUNT_OR_0,
    ENTRY,
    FINITE,
    FLAG,
    LABEL,
    NAME,
    NOT_NEGATIVE,
    OPTIONAL,
    PERIOD,
    PLACE,
    POSITIVE,
    RATE,
    SEED,
    SIZES,
    SIZES_NOT_EMPTY,
    TIME,
    TOLERANCE,
    Number,
    OneOf,
    Range,
    Tuple,
    real,
    whole,
)

FILTER = Tuple("a tuple of 2 to 64 numbers whose sum is not 0", FINITE, lambda n: 2 <= len(n) <= 64 and sum(n) != 0)
EXPONENT = real(0, also=(math.inf,), words="0 or more, or inf for no Soft Truncation")
LAMBDA = real(-1e9, words="0 or more, or negative for the predictor's own")
STEPS = whole(0, most=10**6, words="1 or more, or 0 for model.num_scales")
SEVERAL = whole(2, also=(0,), words="2 or more, or 0 for none")
PYRAMIDS = OneOf(("none", "input_skip", "residual"))
CLIP = Number(float, -1e9, 1e9, without=(0,), words="above 0, or negative for no clipping")

Section = dict[str, tuple[Any, Range, str]]


class Setting(NamedTuple):
    """A key of the configuration."""

    default: Any
    range: Range
    meaning: str


TRAINING: Section = dict(
    sde=("vpsde", ENTRY, "an entry of diffusion.sde.SDES: vpsde, subvpsde, vesde or reciprocal_vesde"),
    batch_size=(128, COUNT, "images per step, over all devices"),
    n_iters=(1300001, COUNT, "steps in all"),
    snapshot_freq=(100000, COUNT, "steps between checkpoints that are kept, with samples and bits/dim"),
    snapshot_freq_for_preemption=(10000, COUNT, "steps between checkpoints to resume from"),
    log_freq=(100, COUNT, "steps between lines of the log"),
    eval_freq=(100, COUNT, "steps between losses of a test batch"),
    snapshot_sampling=(False, FLAG, "draw a grid of samples at each snapshot"),
    continuous=(True, FLAG, "False: the discrete losses of DDPM (VP) and SMLD (VE)"),
    importance_sampling=(True, FLAG, "draw times from the likelihood's importance distribution"),
    likelihood_weighting=(True, FLAG, "weight the loss by g²/σ²"),
    time_sampler=("", OPTIONAL, "ours: an entry of time_sampling.TIME_SAMPLERS; empty: as the official keys say"),
    weighting=("", OPTIONAL, "ours: an entry of weighting.WEIGHTINGS; empty: as the official keys say"),
    lognormal_mean=(-1.2, FINITE, "ours: of ln(σ/α) for data in [-1, 1], of lognormal times and edm weighting"),
    lognormal_std=(1.2, POSITIVE, "ours: of ln(σ/α), of lognormal times and edm weighting"),
    sigmoid_bias=(2.0, FINITE, "ours: b of the sigmoid weighting"),
    min_snr_gamma=(5.0, POSITIVE, "ours: γ of the min_snr weighting"),
    loss=("", OPTIONAL, "ours: an entry of diffusion.losses.LOSSES; empty: as `continuous` and `mixed` say"),
    reduce_mean=(False, FLAG, "average the loss over dimensions instead of summing"),
    reconstruction_loss=(False, FLAG, "add the reconstruction term at τ"),
    mixed=(False, FLAG, "half of the batch with importance sampling, half with uniform times"),
    ddpm_weight=(0.01, NOT_NEGATIVE, "weight of the second half"),
    balanced=(False, FLAG, "scale the second half to the size of the first"),
    st=(False, FLAG, "Soft Truncation"),
    k=(1.0, EXPONENT, "τ ~ τ^-k on [truncation_time, 1]; inf: τ = truncation_time"),
    truncation_prior=("power", ENTRY, "ours: an entry of diffusion.truncation.TRUNCATION_PRIORS"),
    truncation_weighting=("", OPTIONAL, "ours: the entry of WEIGHTINGS of truncation_prior=weighting"),
    tau_groups=(0, COUNT_OR_0, "ours: draws of τ per step; 0: one per device, batch_size: one per image"),
    stratified=(False, FLAG, "ours: spread times evenly over the images that share a τ, and τ over its draws"),
    eval_images=(256, whole(0, most=10**6), "ours: held-out images of `eval_nelbo` in the log; 0: none"),
    fsdp=(1, COUNT, "ours: devices over which parameters, optimizer state and average are sharded"),
    dtype=("float32", ENTRY, "ours: arithmetic of training, or bfloat16; weights, statistics and loss stay float32"),
    reduce_dtype=("float32", ENTRY, "ours: type in which gradients are summed across devices, or bfloat16"),
    remat=("none", ENTRY, "ours: what the backward pass recomputes: none, elementwise or blocks"),
    n_jitted_steps=(1, COUNT, "ours: steps per dispatch"),
    grace=(25.0, POSITIVE, "ours: seconds in which a run that is stopped saves and ends"),
    loggers=("tensorboard", NAME, "ours: beside metrics.jsonl: some of tensorboard, csv and wandb, with commas"),
    profile_steps=("", PERIOD, "ours: steps A-B that JAX's profiler traces, such as 100-110; empty: none"),
    averages=(0, whole(0, most=10_000), "ours: averages stored, from which --ema makes any width; 0: none"),
    truncation_time=(1e-5, TIME, "ε, the smallest time"),
    unbounded_parametrization=(False, FLAG, "the time conditioning of U-DDPM++ and U-NCSN++"),
    stabilizing_constant=(1e-3, NOT_NEGATIVE, "of the unbounded time conditioning of VP"),
    ddpm_score=(True, FLAG, "VP: the network predicts the noise, not the score"),
    eta=(1e-3, real(0, open="(", least=1e-9), "of reciprocal_vesde"),
    official_loss=(False, FLAG, "ours: weight and sum the loss as the official code does (docs: departures)"),
)
SAMPLING: Section = dict(
    method=("ode", ENTRY, "ode (adaptive solver of the probability flow) or pc (predictor and corrector)"),
    predictor=("euler_maruyama", ENTRY, "an entry of diffusion.samplers.PREDICTORS, or none"),
    corrector=("none", ENTRY, "an entry of diffusion.samplers.CORRECTORS, or none"),
    n_steps_each=(1, COUNT, "corrector steps per predictor step"),
    noise_removal=(True, FLAG, "end with the mean of x_0 given x_ε"),
    probability_flow=(False, FLAG, "a predictor without noise"),
    lambda_=(-1.0, LAMBDA, "ours: noise of the predictor; 1: the reverse SDE, negative: its own"),
    churn=(0.0, NOT_NEGATIVE, "ours: S_churn of heun"),
    steps=(0, STEPS, "ours: predictor steps; 0: model.num_scales"),
    snr=(0.16, POSITIVE, "signal-to-noise ratio of the corrector"),
    grid=("uniform", ENTRY, "ours: an entry of diffusion.samplers.GRIDS: uniform, quadratic, logsnr or edm"),
    label=("all", LABEL, "ours: class of sample i: i modulo model.num_classes (all), a number, or none"),
    class_guidance=(1.0, FINITE, "ours: weight of the class against none; 1: no guidance"),
    class_guidance_from=(0.0, NOT_NEGATIVE, "ours: the σ/α from which class_guidance is on"),
    class_guidance_to=(1e9, POSITIVE, "ours: the σ/α up to which class_guidance is on"),
    batch_size=(1024, COUNT, "images per file of samples"),
    group=(16, COUNT, "ours: images computed together on a device; another number may change the last bits"),
    truncation_time=(1e-5, TIME, "ε of sampling"),
    rtol=(1e-5, TOLERANCE, "ours: relative tolerance of the solver"),
    atol=(1e-5, TOLERANCE, "ours: absolute tolerance of the solver"),
)
EVAL: Section = dict(
    batch_size=(200, COUNT, "images per batch, over all devices"),
    group=(0, COUNT_OR_0, "ours: images computed together on a device; 0: a device's share"),
    enable_bpd=(False, FLAG, "bits/dim at each snapshot"),
    num_samples=(50000, COUNT_OR_0, "not used here; an official key"),
    residual=(True, FLAG, "False: only the figures without reconstruction, as in earlier papers"),
    from_x0=(True, FLAG, "ours: also the flow from x_0, as in earlier papers; takes twice the time"),
    lambda_=(0.0, NOT_NEGATIVE, "which reverse SDE: 0: the probability flow, and λ = 1 for the NELBO"),
    nll_iter=(1, COUNT_OR_0, "passes over the test set for the NLL, each with new noise; 0: no NLL"),
    nelbo_iter=(1, COUNT_OR_0, "passes over the test set for the NELBO, one time per image; 0: no NELBO"),
    nelbo_discrete_iter=(0, COUNT_OR_0, "ours: passes for DDPM's bound by model.num_scales steps; 0: not this bound"),
    nelbo_discrete_variance=("posterior", ENTRY, "ours: of DDPM's steps: posterior (1 - ᾱ')/(1 - ᾱ) β, or beta"),
    rtol=(1e-5, TOLERANCE, "ours: relative tolerance of the solver"),
    atol=(1e-5, TOLERANCE, "ours: absolute tolerance of the solver"),
    hutchinson_type=("Rademacher", ENTRY, "ours: or Gaussian"),
    n_probes=(1, COUNT, "ours: Hutchinson probes per image"),
    trace=("hutchinson", ENTRY, "ours: of the Jacobian: hutchinson, or exact, up to 4,096 dimensions"),
    solver=("Dopri5", ENTRY, "ours: Dopri5, Tsit5, Dopri8 or Bosh3"),
    max_steps=(4096, COUNT, "ours: solver steps per image at most"),
    dequantization=("", OPTIONAL, "ours: or truncated_normal; empty: data.dequantization"),
    importance_samples=(1, COUNT, "ours: samples K of the bound with truncated_normal"),
    gradient_images=(32, SEVERAL, "ours: images for the variance of the gradient over t; 0: none"),
)
DATA: Section = dict(
    dataset=("CIFAR10", ENTRY, "an entry of data.datasets.DATASETS"),
    dir=("", PLACE, "ours: folder with the files of the dataset"),
    download=(False, FLAG, "ours: download missing files into data.dir"),
    prepared=("", PLACE, "ours: folder of decoded copies, made by `python -m score_st.data`"),
    local_cache=("", PLACE, "ours: folder for files from buckets; empty: ~/.cache/score_st"),
    skip_unreadable=(False, FLAG, "ours: leave out encoded images that cannot be read; all are read at the start"),
    memory_gb=(
        4.0,
        NOT_NEGATIVE,
        "ours: decoded images of a split, or row groups, are kept up to this size",
    ),
    num_threads=(2, whole(0, most=1024), "ours: threads that read ahead; the batches do not depend on it"),
    image_size=(32, whole(1, most=16_384), "height and width"),
    num_channels=(3, OneOf((1, 3)), "1 or 3"),
    num_levels=(256, whole(2, 256), "ours: pixel values are 0 ... num_levels - 1"),
    random_flip=(True, FLAG, "flip images left to right at random"),
    centered=(False, FLAG, "scale to [-1, 1] instead of [0, 1]"),
    dequantization=("none", OneOf(("none", "uniform", "lossless")), "none, uniform or lossless"),
    category=("", NAME, "of LSUN; of EMNIST: byclass, bymerge, balanced, letters, digits or mnist"),
    tfrecords_path=("", PLACE, "of CelebA-HQ and FFHQ, inside data.dir"),
)
MODEL: Section = dict(
    name=("ncsnpp", ENTRY, "an entry of networks.NETWORKS"),
    parametrization=("", OPTIONAL, "ours: an entry of PARAMETRIZATIONS; empty: the SDE's own"),
    time_conditioning=("", OPTIONAL, "ours: an entry of TIME_CONDITIONINGS; empty: the parametrization's own"),
    data_std=(0.5, POSITIVE, "ours: of the scaled data, for parametrization edm, idode times, edm weighting"),
    data_mean=(0.0, FINITE, "ours: mean of the scaled data, for parametrization=edm"),
    ema_rate=(0.9999, RATE, "of the moving average of the weights"),
    sigma_min=(0.01, real(0, open="(", least=1e-9, most=10**6), "of VE and RVE"),
    sigma_max=(50.0, real(0, open="(", least=1e-9, most=10**6), "of VE and RVE"),
    num_scales=(1000, whole(1, most=10**6), "noise levels of discrete losses; steps of a sampler"),
    beta_min=(0.1, real(0, open="(", least=1e-9, most=150), "of VP and sub-VP"),
    beta_max=(20.0, real(0, open="(", least=1e-9, most=150), "of VP and sub-VP"),
    nf=(128, COUNT, "channels at full resolution"),
    ch_mult=((1, 2, 2, 2), SIZES_NOT_EMPTY, "channels at each resolution, in units of nf"),
    num_res_blocks=(4, whole(1, most=64), "residual blocks per resolution"),
    attn_resolutions=((16,), SIZES, "image sizes with attention"),
    attention=(True, FLAG, "False: attention only in the middle"),
    dropout=(0.1, RATE, "dropout rate"),
    embedding_type=("fourier", OneOf(("fourier", "positional")), "of the time: fourier or positional"),
    embedding_dim=(128, whole(4), "of the time embedding, with lsgm; otherwise nf"),
    lsgm=(False, FLAG, "use embedding_dim"),
    fourier_scale=(16.0, POSITIVE, "standard deviation of the frequencies"),
    fourier_feature=(False, FLAG, "append sines and cosines of the image to the input"),
    conditional=(True, FLAG, "condition the network on time"),
    scale_by_sigma=(False, FLAG, "divide the output by σ"),
    nonlinearity=("swish", OneOf(("swish", "elu", "relu", "lrelu")), "swish, elu, relu or lrelu"),
    resblock_type=("biggan", OneOf(("biggan", "ddpm")), "biggan or ddpm"),
    resamp_with_conv=(True, FLAG, "resample with a convolution, where resblock_type=ddpm"),
    fir=(False, FLAG, "resample with a FIR filter"),
    fir_kernel=((1, 3, 3, 1), FILTER, "of the filter"),
    skip_rescale=(True, FLAG, "divide sums by √2"),
    progressive=("none", OneOf(("none", "output_skip", "residual")), "output pyramid: none, output_skip or residual"),
    progressive_input=("none", PYRAMIDS, "input pyramid: none, input_skip or residual"),
    progressive_combine=("sum", OneOf(("sum", "cat")), "how the input pyramid is merged: sum or cat"),
    auxiliary_resblock=(True, FLAG, "residual blocks that resample"),
    init_scale=(0.0, NOT_NEGATIVE, "of the last convolutions; 0: 1e-10"),
    num_classes=(0, whole(0, most=10**5), "ours: classes of the data that the network is told; 0: none"),
    class_dropout=(0.1, RATE, "ours: rate at which training hides the class, for guidance without a classifier"),
    center_input=(
        True,
        FLAG,
        "ours: where data.centered=False, the network maps [0, 1] to [-1, 1]; False: it does not",
    ),
    num_groups=(0, COUNT_OR_0, "ours: of each group normalization; 0: a quarter of the channels, at most 32"),
    diffusers_groups=(False, FLAG, "ours: the groups that NCSN++ has in diffusers at sizes with attention"),
    attention_each=(False, FLAG, "ours: on the way up, attention after every residual block, not only the last"),
)
OPTIM: Section = dict(
    optimizer=("Adam", ENTRY, "Adam or AdamW"),
    lr=(2e-4, real(0, open="(", most=1000), "learning rate after warm-up"),
    beta1=(0.9, RATE, "of Adam"),
    eps=(1e-8, POSITIVE, "of Adam"),
    weight_decay=(0.0, NOT_NEGATIVE, "of Adam (L2) or AdamW (decoupled)"),
    warmup=(5000, COUNT_OR_0, "steps of linear warm-up"),
    schedule=("constant", ENTRY, "ours: the rate after warm-up, constant or cosine (down to 0 at training.n_iters)"),
    grad_clip=(1.0, CLIP, "clips the global norm of the gradient; negative: no clipping"),
    num_micro_batch=(1, COUNT, "parts of a device's share, computed one after the other"),
)
STORAGE: Section = dict(
    patience=(900.0, NOT_NEGATIVE, "ours: seconds to wait for a bucket that does not answer, before exit code 75"),
    lease=(30.0, real(0.1), "ours: seconds without renewal before the workdir of another trainer is taken over"),
    rescue=("", PLACE, "ours: folder for a checkpoint that can't reach its bucket; empty: a new temporary one"),
)

SECTIONS = {
    "training": TRAINING,
    "sampling": SAMPLING,
    "eval": EVAL,
    "data": DATA,
    "model": MODEL,
    "optim": OPTIM,
    "storage": STORAGE,
}

# by dotted key
ALL = {"seed": Setting(42, SEED, "of everything that is random")} | {
    f"{section}.{key}": Setting(*row) for section, rows in SECTIONS.items() for key, row in rows.items()
}


def problems(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields each key whose value does not go with those of others, and what would be right.

    Args:
      values: all of them by dotted key, each in its range.
    """
    for low, high, words in (
        ("model.sigma_min", "model.sigma_max", "below"),
        ("training.eta", "model.sigma_max", "below"),
        ("sampling.class_guidance_from", "sampling.class_guidance_to", "below"),
        ("model.beta_min", "model.beta_max", "at most"),
        ("training.averages", "training.n_iters", "at most"),
    ):
        if values[low] > values[high] or (words == "below" and values[low] == values[high]):
            yield low, f"should be {words} {high}={values[high]}"
    if values["sampling.method"] == "pc" and values["sampling.predictor"] == values["sampling.corrector"] == "none":
        yield "sampling.predictor", "should not be none where sampling.corrector is none, too"
