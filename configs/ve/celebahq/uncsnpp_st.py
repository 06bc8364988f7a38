"""UNCSN++ + Soft Truncation on CelebA-HQ 256x256, which in the official file is NCSN++ with the plain VE SDE.

Command:   python -m score_st.train --config configs/ve/celebahq/uncsnpp_st.py --workdir runs/celebahq_uncsnpp_st
Hardware:  not published with the official code
Published: FID 7.16 for UNCSN++ (RVE) + ST (as Papers with Code lists it for arXiv 2106.05527)

Kept as it is, for its published checkpoint: training.sde=reciprocal_vesde with model.sigma_min=1e-3 would be UNCSN++
(celebahq_256_uncsn.py). The official code never passes the flag on with the VE SDE, and so trained without Soft
Truncation; here it is applied (training.st=False is what was run there).
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.ncsnpp256(presets.pixels256(default(), "CelebAHQ"))
    config.training.update(st=True, k=2.0)
    config.data.tfrecords_path = "CelebAHQ_256/celeba_r08.tfrecords"
    return config
