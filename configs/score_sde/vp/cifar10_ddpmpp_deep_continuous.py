"""DDPM++ deep cont. (VP) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/vp/cifar10_ddpmpp_deep_continuous.py \\
             --workdir runs/vp_ddpmpp_deep
Hardware:  not published
Published: FID 2.41, Inception score 9.68; with the ODE: FID 3.08, 3.13 bits/dim (score_sde_pytorch, README)

Fits the published checkpoint vp/cifar10_ddpmpp_deep_continuous. Its bits/dim are those of uniformly dequantized
images, without the reconstruction term: --config.data.dequantization=uniform --config.eval.residual=False.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ddpmpp(default()))
    config.training.n_iters = 950001
    config.sampling.truncation_time = 1e-3
    config.model.num_res_blocks = 8
    return config
