"""Preconditioned DDPM++ + Soft Truncation on scikit-learn's digits, 8x8x1 with 17 levels: a complete run on a laptop.

`ddpmpp_nll_st_official` is the same with the official parametrization, times and constant rate.

Command:   python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
Hardware:  2 CPU cores
Published: nothing; docs/results.md has what is measured here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import load


def get_config() -> ConfigDict:
    config = load("vp/DIGITS/ddpmpp_nll_st_official").unlock()
    config = presets.preconditioned(config, data_mean=-0.3663, data_std=0.7086)
    config.optim.lr = 4e-3
    return config
