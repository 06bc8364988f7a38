"""NCSN++ cont. (VP) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/vp/cifar10_ncsnpp_continuous.py --workdir runs/vp_ncsnpp
Hardware:  not published
Published: no checkpoint; figures not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ddpmpp(default()))
    config.sampling.truncation_time = 1e-3
    config.model.update(fir=True, progressive_input="residual")
    return config
