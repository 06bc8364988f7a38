"""DDPM++ cont. (VP) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/vp/cifar10_ddpmpp_continuous.py --workdir runs/vp_ddpmpp
Hardware:  not published
Published: FID 2.55, Inception score 9.58; with the ODE: FID 3.93, 3.16 bits/dim (score_sde_pytorch, README)

Fits the published checkpoint vp/cifar10_ddpmpp_continuous. Its bits/dim are those of uniformly dequantized images,
without the reconstruction term: --config.data.dequantization=uniform --config.eval.residual=False.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ddpmpp(default()))
    config.sampling.truncation_time = 1e-3
    return config
