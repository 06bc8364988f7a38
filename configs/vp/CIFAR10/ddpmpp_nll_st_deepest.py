"""DDPM++ deepest (VP, NLL) + Soft Truncation on CIFAR-10: 512 channels, the balanced mixed loss.

Command:   python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_nll_st_deepest.py \\
             --workdir runs/cifar10_ddpmpp_nll_st_deepest
Hardware:  not published with the official code
Published: not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.deepest(presets.cifar10(default()))
    config.training.update(st=True, k=2.0, balanced=True)
    return config
