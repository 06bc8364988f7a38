"""UNCSN++ (RVE) on CelebA-HQ 256x256.

Command:   python -m score_st.train --config configs/ve/celebahq_256_uncsn.py --workdir runs/celebahq_256_uncsn
Hardware:  not published with the official code
Published: not verified here

The official file asks for the SDE 'rve-sde', which its code does not know: it is reciprocal_vesde by an earlier
name. Soft Truncation is off; training.st=True turns it on, with the prior uniform in 1/τ (k=2.0).
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.rve(presets.ncsnpp256(presets.pixels256(default(), "CelebAHQ")))
    config.data.tfrecords_path = "CelebAHQ_256/celeba_r08.tfrecords"
    return config
