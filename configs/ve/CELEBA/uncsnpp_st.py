"""UNCSN++ (RVE) + Soft Truncation on CelebA 64x64.

Command:   python -m score_st.train --config configs/ve/CELEBA/uncsnpp_st.py --workdir runs/celeba_uncsnpp_st
Hardware:  not published with the official code
Published: 1.97 bits/dim (Papers with Code, for arXiv 2106.05527), which do not compare with an `nll`
           under uniform dequantization; FID not verified here

With the RVE SDE the official prior of τ is uniform in 1/τ, whatever k says; k=2.0 is that prior. The official code
never passes the flag on, so it trained without Soft Truncation; here the flag holds. The checkpoint is published;
the official README has the link.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.rve(presets.ncsnpp(presets.celeba(default())))
    config.training.st = True
    return config
