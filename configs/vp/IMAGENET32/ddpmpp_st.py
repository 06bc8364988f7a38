"""DDPM++ (VP, NLL) + Soft Truncation on ImageNet 32x32.

Command:   python -m score_st.train --config configs/vp/IMAGENET32/ddpmpp_st.py --workdir runs/imagenet32_ddpmpp_st
Hardware:  not published with the official code
Published: 3.90 bits/dim with uniform dequantization (official repository, issue 4), which `nll` compares with;
           3.85 bits/dim, which it does not, FID 8.42, Inception score 11.82 (Papers with Code, for arXiv 2106.05527)

The checkpoint is published; the official README has the link.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.imagenet32(default()))
    config.training.update(st=True, k=1.0, likelihood_weighting=False)
    return config
