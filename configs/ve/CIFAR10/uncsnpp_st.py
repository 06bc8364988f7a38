"""UNCSN++ (RVE) + Soft Truncation on CIFAR-10.

Command:   python -m score_st.train --config configs/ve/CIFAR10/uncsnpp_st.py --workdir runs/cifar10_uncsnpp_st
Hardware:  not published with the official code
Published: not verified here

With the RVE SDE the official prior of τ is uniform in 1/τ, whatever k says; k=2.0 is that prior. The official code
never passes the flag on, so it trained without Soft Truncation; here the flag holds. The checkpoint is published;
the official README has the link.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.rve(presets.ncsnpp(presets.cifar10(default())))
    config.training.st = True
    return config
