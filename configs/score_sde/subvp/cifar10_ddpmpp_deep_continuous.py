"""DDPM++ deep cont. (sub-VP) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/subvp/cifar10_ddpmpp_deep_continuous.py \\
             --workdir runs/subvp_ddpmpp_deep
Hardware:  not published
Published: FID 2.41, Inception score 9.57; with the ODE: FID 2.92, 2.99 bits/dim (score_sde_pytorch, README)

Fits the published checkpoint subvp/cifar10_ddpmpp_deep_continuous. Its bits/dim are those of uniformly dequantized
images, without the reconstruction term: --config.data.dequantization=uniform --config.eval.residual=False.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ddpmpp(default()))
    config.training.update(sde="subvpsde", n_iters=950001)
    config.sampling.truncation_time = 1e-3
    config.model.num_res_blocks = 8
    return config
