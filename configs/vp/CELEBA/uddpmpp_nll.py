"""U-DDPM++ (VP, NLL) on CelebA 64x64: importance sampling, no Soft Truncation.

Command:   python -m score_st.train --config configs/vp/CELEBA/uddpmpp_nll.py --workdir runs/celeba_uddpmpp_nll
Hardware:  not published with the official code
Published: not verified here

The time conditioning is unbounded; training.stabilizing_constant keeps it finite.
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.celeba(default()))
    config.training.likelihood_weighting = False
    config.training.unbounded_parametrization = True
    return config
