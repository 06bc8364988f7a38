"""NCSN++ deep cont. (sub-VP) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/subvp/cifar10_ncsnpp_deep_continuous.py \\
             --workdir runs/subvp_ncsnpp_deep
Hardware:  not published
Published: no checkpoint; figures not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ddpmpp(default()))
    config.training.update(sde="subvpsde", n_iters=950001)
    config.sampling.truncation_time = 1e-3
    config.model.update(num_res_blocks=8, fir=True, progressive_input="residual")
    return config
