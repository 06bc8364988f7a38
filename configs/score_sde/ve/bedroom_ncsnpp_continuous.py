"""NCSN++ cont. (VE) of Song et al. (2021), on LSUN bedroom 256x256.

Command:   python -m score_st.train --config configs/score_sde/ve/bedroom_ncsnpp_continuous.py \\
             --workdir runs/ve_bedroom_ncsnpp
Hardware:  not published
Published: samples only (score_sde_pytorch, README)

Fits the published checkpoint ve/bedroom_ncsnpp_continuous.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ncsnpp256(presets.pixels256(default(), "LSUN")))
    config.training.n_iters = 2400001
    config.eval.batch_size = 512
    config.data.category = "bedroom"
    config.model.sigma_max = 378.0
    return config
