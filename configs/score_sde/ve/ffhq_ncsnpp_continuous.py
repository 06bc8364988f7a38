"""NCSN++ cont. (VE) of Song et al. (2021), on FFHQ 1024x1024.

Command:   python -m score_st.train --config configs/score_sde/ve/ffhq_ncsnpp_continuous.py \\
             --workdir runs/ve_ffhq_ncsnpp
Hardware:  4 V100 (32 GB), about 2.5 weeks (its author, yang-song/score_sde, issue 4)
Published: samples only (score_sde_pytorch, README)

Fits the published checkpoint ve/ffhq_1024_ncsnpp_continuous.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.score_sde(presets.ncsnpp1024(presets.pixels1024(default(), "FFHQ")))
    config.training.reduce_mean = True
    config.data.tfrecords_path = "FFHQ_1024/ffhq-r10.tfrecords"
    return config
