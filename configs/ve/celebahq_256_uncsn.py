"""UNCSN++ (RVE) on CelebA-HQ 256x256.

Command:   python -m score_st.train --config configs/ve/celebahq_256_uncsn.py --workdir runs/celebahq_256_uncsn
Hardware:  not published with the official code
Published: not verified here

The official file names the SDE 'rve-sde', which the official code does not know: it is an earlier name of
reciprocal_vesde. Soft Truncation is off; training.st=True turns it on, with a prior that is uniform in 1/τ (k=2.0).
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.rve(presets.ncsnpp256(presets.pixels256(default(), "CelebAHQ")))
    config.data.tfrecords_path = "CelebAHQ_256/celeba_r08.tfrecords"
    return config
