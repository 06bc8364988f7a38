"""DDPM++ (VP, FID) on CIFAR-10: uniform times, variance weighting, no Soft Truncation.

Command:   python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_fid.py --workdir runs/cifar10_ddpmpp_fid
Hardware:  not published with the official code
Published: not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.cifar10(default()))
    config.training.update(importance_sampling=False, likelihood_weighting=False)
    return config
