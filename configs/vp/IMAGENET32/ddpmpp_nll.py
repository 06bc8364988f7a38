"""DDPM++ (VP, NLL) on ImageNet 32x32: no Soft Truncation, times from 5e-5.

Command:   python -m score_st.train --config configs/vp/IMAGENET32/ddpmpp_nll.py --workdir runs/imagenet32_ddpmpp_nll
Hardware:  not published with the official code
Published: not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.imagenet32(default()))
    config.training.truncation_time = 5e-5
    return config
