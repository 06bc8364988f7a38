"""NCSN++ (VE) + Soft Truncation on CelebA 64x64.

Command:   python -m score_st.train --config configs/ve/CELEBA/ncsnpp_st.py --workdir runs/celeba_ncsnpp_st
Hardware:  not published with the official code
Published: not verified here

With the VE SDE the official code never passes the flag on, so it trained without Soft Truncation. Here the flag
holds; training.st=False is what was run there.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ncsnpp(presets.celeba(default()))
    config.training.update(st=True, k=2.0)
    return config
