"""UNCSN++ (RVE) + Soft Truncation on STL-10, 48x48.

Command:   python -m score_st.train --config configs/ve/STL10/uncsnpp_st.py --workdir runs/stl10_uncsnpp_st
Hardware:  not published with the official code
Published: FID 7.71, Inception score 13.43 (Papers with Code, for arXiv 2106.05527)

The official code has the data set (48x48, training and unlabeled images) but no configuration for it. This one
combines its defaults with the CIFAR-10 model, and takes σ_min and k from there. Since 48 halves to 24, 12 and 6,
attn_resolutions=(16,) leaves attention only in the middle block.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.rve(presets.ncsnpp(presets.stl10(default())))
    config.training.st = True
    return config
