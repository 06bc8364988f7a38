"""DDPM++ (VP, NLL) on CIFAR-10: importance sampling, likelihood weighting, no Soft Truncation.

Command:   python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_nll.py --workdir runs/cifar10_ddpmpp_nll
Hardware:  not published with the official code
Published: not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    return presets.ddpmpp(presets.cifar10(default()))
