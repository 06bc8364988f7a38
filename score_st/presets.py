"""What experiments share: each function changes several keys of a configuration in place, and returns it.

A data set's function sets what depends on its images: their size, and how often to log, sample and evaluate. A model's
function sets the network and its SDE. A configuration file calls one of each, in this order, and then sets the few
keys of its own:

    config = presets.ddpmpp(presets.celeba(default()))
    config.training.update(st=True, k=1.0)
"""

from ml_collections import ConfigDict

# ---- data sets


def cifar10(config: ConfigDict) -> ConfigDict:
    """CIFAR-10, 32x32: `default()`, trained as long as in the official code."""
    config.training.n_iters = 13000001
    return config


def imagenet32(config: ConfigDict) -> ConfigDict:
    """ImageNet, 32x32: like CIFAR-10, without dropout."""
    config = cifar10(config)
    config.data.dataset = "IMAGENET32"
    config.model.dropout = 0.0
    return config


def celeba(config: ConfigDict) -> ConfigDict:
    """CelebA, 64x64."""
    config.training.update(log_freq=50, snapshot_freq=50000, snapshot_sampling=True)
    config.sampling.update(method="pc", snr=0.17, batch_size=512)
    config.eval.batch_size = 1024
    config.data.update(dataset="CELEBA", image_size=64)
    config.model.sigma_max = 90.0
    return config


def stl10(config: ConfigDict) -> ConfigDict:
    """STL-10, 48x48."""
    config.training.update(batch_size=196, n_iters=13000001)
    config.sampling.snr = 0.17
    config.eval.batch_size = 512
    config.data.update(dataset="STL10", image_size=48)
    config.model.sigma_max = 150.0
    return config


def pixels256(config: ConfigDict, dataset: str) -> ConfigDict:
    """LSUN, CelebA-HQ and FFHQ, 256x256."""
    config.training.update(batch_size=64, n_iters=24000001, log_freq=1000, eval_freq=500)
    config.training.update(snapshot_freq=200000, snapshot_freq_for_preemption=5000)
    config.sampling.update(snr=0.075, batch_size=16, truncation_time=1e-3)
    config.eval.batch_size = 512
    config.data.update(dataset=dataset, image_size=256)
    config.model.update(sigma_max=348.0, num_scales=2000, dropout=0.0)
    return config


def pixels1024(config: ConfigDict, dataset: str) -> ConfigDict:
    """CelebA-HQ and FFHQ, 1024x1024."""
    config.training.update(batch_size=8, n_iters=2400001, log_freq=50)
    config.training.update(snapshot_freq=50000, snapshot_freq_for_preemption=5000, snapshot_sampling=True)
    config.sampling.update(snr=0.15, batch_size=8)
    config.data.update(dataset=dataset, image_size=1024)
    config.model.update(sigma_max=1348.0, num_scales=2000, dropout=0.0)
    return config


# ---- models


def ddpmpp(config: ConfigDict) -> ConfigDict:
    """DDPM++ with the VP SDE: images in [-1, 1], positional time embedding, loss averaged over dimensions."""
    config.training.update(sde="vpsde", reduce_mean=True)
    config.data.centered = True
    config.model.embedding_type = "positional"
    return config


def laptop(config: ConfigDict) -> ConfigDict:
    """Small U-DDPM++ with Soft Truncation for gray images: minutes to hours on 2 CPU cores.

    It has one residual block per resolution. Small batches allow many updates. Each step draws eight τ, as on eight
    devices, because a single τ makes the gradient much noisier. There is no dropout: drawing its random bits takes a
    tenth of a step, and so short a run hardly overfits.
    """
    config = ddpmpp(config)
    config.training.update(st=True, k=1.0, likelihood_weighting=False, unbounded_parametrization=True)
    config.training.update(batch_size=32, tau_groups=8, snapshot_freq_for_preemption=500, snapshot_sampling=True)
    config.training.eval_images = 64
    config.sampling.update(batch_size=64, rtol=1e-3, atol=1e-3)
    config.eval.update(gradient_images=8, rtol=3e-4, atol=3e-4)
    config.data.update(num_channels=1, dequantization="uniform", random_flip=False)
    config.model.update(num_res_blocks=1, ema_rate=0.999, dropout=0.0)
    return config


def preconditioned(config: ConfigDict, data_mean: float, data_std: float) -> ConfigDict:
    """What trains best here (docs/results.md): EDM's form of the network, i-DODE's times, stratified, a cosine decay.

    The official parametrization is the one that published checkpoints need.

    Args:
      config: with a data set and a network.
      data_mean: of the scaled data, as `python -m score_st.data` prints it.
      data_std: its standard deviation.
    """
    config.model.update(parametrization="edm", data_mean=data_mean, data_std=data_std)
    config.model.time_conditioning = "log_noise_level"
    config.training.update(time_sampler="idode", stratified=True, unbounded_parametrization=False)
    config.optim.schedule = "cosine"
    return config


def deepest(config: ConfigDict) -> ConfigDict:
    """The largest DDPM++ (374 million parameters): 512 channels and 8 blocks per resolution, FIR, the mixed loss."""
    config = ddpmpp(config)
    config.training.update(mixed=True, likelihood_weighting=False)
    config.sampling.method = "pc"
    config.model.update(nf=512, ch_mult=(1, 1, 1), num_res_blocks=8, fir=True, dropout=0.2)
    config.model.update(lsgm=True, embedding_dim=128)
    return config


def ncsnpp(config: ConfigDict) -> ConfigDict:
    """NCSN++ with the VE SDE: FIR, an input pyramid, Fourier embedding of the noise level, variance weighting."""
    config.training.update(sde="vesde", importance_sampling=False, likelihood_weighting=False)
    config.sampling.update(method="pc", predictor="reverse_diffusion", corrector="langevin")
    config.model.update(ema_rate=0.999, scale_by_sigma=True, fir=True, progressive_input="residual")
    return config


def ncsnpp256(config: ConfigDict) -> ConfigDict:
    """NCSN++ for 256x256: seven resolutions, input and output pyramids."""
    config = ncsnpp(config)
    config.model.update(ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2)
    config.model.update(progressive="output_skip", progressive_input="input_skip")
    return config


def ncsnpp1024(config: ConfigDict) -> ConfigDict:
    """NCSN++ for 1024x1024: eight resolutions with 16 to 512 channels, input and output pyramids."""
    config = ncsnpp(config)
    config.model.update(ema_rate=0.9999, nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1)
    config.model.update(progressive="output_skip", progressive_input="input_skip")
    return config


def rve(config: ConfigDict, sigma_min: float = 1e-3) -> ConfigDict:
    """The RVE SDE down to `sigma_min`, which turns NCSN++ into UNCSN++; its prior P_2 is uniform in 1/τ."""
    config.training.update(sde="reciprocal_vesde", eta=sigma_min, k=2.0)
    config.model.sigma_min = sigma_min
    return config


def score_sde(config: ConfigDict) -> ConfigDict:
    """Training and evaluation as in Song et al. (2021): uniform times, variance weighting, frequent snapshots."""
    config.training.update(importance_sampling=False, likelihood_weighting=False)
    config.training.update(log_freq=50, eval_freq=100, snapshot_freq=50000, snapshot_sampling=True)
    config.sampling.update(method="pc", truncation_time=1e-5)
    config.eval.batch_size = 1024
    return config
