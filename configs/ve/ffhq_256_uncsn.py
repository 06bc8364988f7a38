"""UNCSN++ (RVE) on FFHQ 256x256.

Command:   python -m score_st.train --config configs/ve/ffhq_256_uncsn.py --workdir runs/ffhq_256_uncsn
Hardware:  not published with the official code
Published: FID 5.54 for "UDM (RVE) + ST" (Papers with Code, for arXiv 2106.05527),
           which need not be this file: it has no Soft Truncation

The official file names the SDE 'rve-sde', which the official code does not know: it is an earlier name of
reciprocal_vesde. Soft Truncation is off; training.st=True turns it on, with a prior that is uniform in 1/τ (k=2.0).
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.rve(presets.ncsnpp256(presets.pixels256(default(), "FFHQ")))
    config.data.tfrecords_path = "FFHQ_256/ffhq-r08.tfrecords"
    return config
