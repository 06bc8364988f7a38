"""DDPM++ (VP, NLL) + Soft Truncation on STL-10, 48x48.

Command:   python -m score_st.train --config configs/vp/STL10/ddpmpp_nll_st.py --workdir runs/stl10_ddpmpp_nll_st
Hardware:  not published with the official code
Published: not verified here

The official code has the data set (48x48, unlabelled and training images) but no config: this one joins its defaults
to the model of CIFAR-10, with k as there. As 48 halves to 24, 12 and 6, attn_resolutions=(16,) leaves attention in
the middle block alone.
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.ddpmpp(presets.stl10(default()))
    config.training.update(st=True, k=1.0, likelihood_weighting=False)
    return config
