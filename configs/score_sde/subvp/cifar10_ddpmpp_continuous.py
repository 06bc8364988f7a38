"""DDPM++ cont. (sub-VP) on CIFAR-10, of Song et al. (2021).

Command:   python -m score_st.train --config configs/score_sde/subvp/cifar10_ddpmpp_continuous.py \\
             --workdir runs/subvp_ddpmpp
Hardware:  not published
Published: FID 2.61, Inception score 9.56; by the ODE FID 3.16, 3.02 bits/dim (score_sde_pytorch, README)

Loads the published checkpoint subvp/cifar10_ddpmpp_continuous. Its bits/dim are of uniformly dequantised images
without reconstruction term: --config.data.dequantization=uniform --config.eval.residual=False.
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.score_sde(presets.ddpmpp(default()))
    config.training.sde = "subvpsde"
    config.sampling.truncation_time = 1e-3
    return config
