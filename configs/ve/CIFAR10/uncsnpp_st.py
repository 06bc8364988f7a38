"""UNCSN++ (RVE) + Soft Truncation on CIFAR-10.

Command:   python -m score_st.train --config configs/ve/CIFAR10/uncsnpp_st.py --workdir runs/cifar10_uncsnpp_st
Hardware:  not published with the official code
Published: not verified here

The official prior of τ with the RVE SDE is uniform in 1/τ and knows no k; k=2.0 is that law. The official code never
passes the flag on, and so trained without Soft Truncation; here it is applied. Its checkpoint is published: the
official README has the command and the link.
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.rve(presets.ncsnpp(presets.cifar10(default())))
    config.training.st = True
    return config
