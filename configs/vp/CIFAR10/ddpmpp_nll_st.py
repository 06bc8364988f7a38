"""DDPM++ (VP, NLL) + Soft Truncation on CIFAR-10.

Command:   python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_nll_st.py --workdir runs/cifar10_ddpmpp_nll_st
Hardware:  not published with the official code
Published: not verified here

The checkpoint is published; the official README has the link.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.cifar10(default()))
    config.training.update(st=True, k=1.0, likelihood_weighting=False)
    return config
