"""DDPM++ (VP, NLL) on CelebA 64x64: importance sampling, no Soft Truncation.

Command:   python -m score_st.train --config configs/vp/CELEBA/ddpmpp_nll.py --workdir runs/celeba_ddpmpp_nll
Hardware:  not published with the official code
Published: not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    return presets.ddpmpp(presets.celeba(default()))
