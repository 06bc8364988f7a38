"""DDPM++ (VP, NLL) + Soft Truncation on CelebA 64x64.

Command:   python -m score_st.train --config configs/vp/CELEBA/ddpmpp_nll_st.py --workdir runs/celeba_ddpmpp_nll_st
Hardware:  not published with the official code
Published: 1.96 bits/dim, FID 2.90 (Papers with Code, for arXiv 2106.05527);
           these bits/dim do not compare with an `nll` under uniform dequantization

The checkpoint is published; the official README has the link.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.celeba(default()))
    config.training.update(st=True, k=1.0, likelihood_weighting=False)
    return config
