"""UNCSN++ + Soft Truncation on CelebA-HQ 256x256, which in the official file is NCSN++ with the plain VE SDE.

Command:   python -m score_st.train --config configs/ve/celebahq/uncsnpp_st.py --workdir runs/celebahq_uncsnpp_st
Hardware:  not published with the official code
Published: FID 7.16 for UNCSN++ (RVE) + ST (Papers with Code, for arXiv 2106.05527)

It stays that way because the published checkpoint fits it; UNCSN++ would have training.sde=reciprocal_vesde and
model.sigma_min=1e-3 (celebahq_256_uncsn.py). With the VE SDE the official code never passes the flag on, so it
trained without Soft Truncation. Here the flag holds; training.st=False is what was run there.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ncsnpp256(presets.pixels256(default(), "CelebAHQ"))
    config.training.update(st=True, k=2.0)
    config.data.tfrecords_path = "CelebAHQ_256/celeba_r08.tfrecords"
    return config
