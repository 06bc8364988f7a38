"""UNCSN++ (RVE) + Soft Truncation on STL-10, 48x48.

Command:   python -m score_st.train --config configs/ve/STL10/uncsnpp_st.py --workdir runs/stl10_uncsnpp_st
Hardware:  not published with the official code
Published: FID 7.71, Inception score 13.43 (as Papers with Code lists it for arXiv 2106.05527)

The official code has the data set (48x48, unlabelled and training images) but no config: this one joins its defaults
to the model of CIFAR-10, with σ_min and k as there. As 48 halves to 24, 12 and 6, attn_resolutions=(16,) leaves
attention in the middle block alone.
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.rve(presets.ncsnpp(presets.stl10(default())))
    config.training.st = True
    return config
