"""NCSN++ deep cont. (VE) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/ve/cifar10_ncsnpp_deep_continuous.py \\
             --workdir runs/ve_ncsnpp_deep
Hardware:  not published
Published: FID 2.20, Inception score 9.89 (score_sde_pytorch, README)

Fits the published checkpoint ve/cifar10_ncsnpp_deep_continuous.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ncsnpp(default()))
    config.training.n_iters = 950001
    config.model.num_res_blocks = 8
    return config
