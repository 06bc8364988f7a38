"""DDPM++ deepest (VP, FID) + Soft Truncation on CIFAR-10: 512 channels, the mixed loss.

Command:   python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_fid_st_deepest.py \\
             --workdir runs/cifar10_ddpmpp_fid_st_deepest
Hardware:  not published with the official code
Published: not verified here; 3.03 bits/dim with uniform dequantization for DDPM++ (VP, FID) + ST
           (official repository, issue 4), which need not be this network

The checkpoint is published; the official README has the link.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.deepest(presets.cifar10(default()))
    config.training.update(st=True, k=0.9, importance_sampling=False, ddpm_weight=100.0)
    return config
