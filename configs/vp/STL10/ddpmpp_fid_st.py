"""DDPM++ (VP, FID) + Soft Truncation on STL-10, 48x48: uniform times, variance weighting.

Command:   python -m score_st.train --config configs/vp/STL10/ddpmpp_fid_st.py --workdir runs/stl10_ddpmpp_fid_st
Hardware:  not published with the official code
Published: not verified here

The official code has the data set (48x48, training and unlabeled images) but no configuration for it. This one
combines its defaults with the CIFAR-10 model, and takes k from CelebA. Since 48 halves to 24, 12 and 6,
attn_resolutions=(16,) leaves attention only in the middle block.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.stl10(default()))
    config.training.update(st=True, k=1.0, importance_sampling=False, likelihood_weighting=False)
    return config
