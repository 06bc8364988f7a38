"""NCSN++ cont. (VE) of Song et al. (2021), on CelebA-HQ 1024x1024.

Command:   python -m score_st.train --config configs/score_sde/ve/celebahq_ncsnpp_continuous.py \\
             --workdir runs/ve_celebahq_ncsnpp
Hardware:  not published
Published: no checkpoint and no figure (score_sde_pytorch, README)
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ncsnpp1024(presets.pixels1024(default(), "CelebAHQ")))
    config.data.tfrecords_path = "CelebAHQ_1024/celeba_r10.tfrecords"
    return config
