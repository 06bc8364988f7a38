"""DDPM++ (VP, FID) on ImageNet 32x32: uniform times, variance weighting, no Soft Truncation.

Command:   python -m score_st.train --config configs/vp/IMAGENET32/ddpmpp_fid.py --workdir runs/imagenet32_ddpmpp_fid
Hardware:  not published with the official code
Published: not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.imagenet32(default()))
    config.training.update(importance_sampling=False, likelihood_weighting=False)
    return config
