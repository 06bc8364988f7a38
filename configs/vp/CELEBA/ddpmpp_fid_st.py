"""DDPM++ (VP, FID) + Soft Truncation on CelebA 64x64: uniform times, variance weighting.

Command:   python -m score_st.train --config configs/vp/CELEBA/ddpmpp_fid_st.py --workdir runs/celeba_ddpmpp_fid_st
Hardware:  not published with the official code
Published: 2.10 bits/dim, FID 1.90 (Papers with Code, for arXiv 2106.05527);
           these bits/dim do not compare with an `nll` under uniform dequantization

The checkpoint is published; the official README has the link.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.celeba(default()))
    config.training.update(st=True, k=1.0, importance_sampling=False, likelihood_weighting=False)
    return config
