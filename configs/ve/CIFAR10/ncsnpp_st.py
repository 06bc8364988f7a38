"""NCSN++ (VE) + Soft Truncation on CIFAR-10.

Command:   python -m score_st.train --config configs/ve/CIFAR10/ncsnpp_st.py --workdir runs/cifar10_ncsnpp_st
Hardware:  not published with the official code
Published: not verified here

The official file sets no k; 2.0 is that of its CelebA sibling. With the VE SDE the official code never passes the
flag on, so it trained without Soft Truncation. Here the flag holds; training.st=False is what was run there.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ncsnpp(presets.cifar10(default()))
    config.training.update(st=True, k=2.0)
    config.model.sigma_min = 1e-3
    return config
