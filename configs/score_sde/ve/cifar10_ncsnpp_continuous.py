"""NCSN++ cont. (VE) of Song et al. (2021), on CIFAR-10.

Command:   python -m score_st.train --config configs/score_sde/ve/cifar10_ncsnpp_continuous.py --workdir runs/ve_ncsnpp
Hardware:  not published
Published: FID 2.38, Inception score 9.83 (score_sde_pytorch, README)

Fits the published checkpoint ve/cifar10_ncsnpp_continuous.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    return presets.score_sde(presets.ncsnpp(default()))
