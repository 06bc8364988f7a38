"""DDPM++ cont. (sub-VP) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/subvp/cifar10_ddpmpp_continuous.py \\
             --workdir runs/subvp_ddpmpp
Hardware:  not published
Published: FID 2.61, Inception score 9.56; with the ODE: FID 3.16, 3.02 bits/dim (score_sde_pytorch, README)

Fits the published checkpoint subvp/cifar10_ddpmpp_continuous. Its bits/dim are those of uniformly dequantized
images, without the reconstruction term: --config.data.dequantization=uniform --config.eval.residual=False.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ddpmpp(default()))
    config.training.sde = "subvpsde"
    config.sampling.truncation_time = 1e-3
    return config
