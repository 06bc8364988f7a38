"""UNCSN++ (RVE) + Soft Truncation on CelebA 64x64.

Command:   python -m score_st.train --config configs/ve/CELEBA/uncsnpp_st.py --workdir runs/celeba_uncsnpp_st
Hardware:  not published with the official code
Published: 1.97 bits/dim (as Papers with Code lists it for arXiv 2106.05527); FID not verified here

The official prior of τ with the RVE SDE is uniform in 1/τ and knows no k; k=2.0 is that law. The official code never
passes the flag on, and so trained without Soft Truncation; here it is applied. Its checkpoint is published: the
official README has the command and the link.
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.rve(presets.ncsnpp(presets.celeba(default())))
    config.training.st = True
    return config
