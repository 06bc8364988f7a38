"""Preconditioned DDPM++ + Soft Truncation on Fashion-MNIST in a black frame, 32x32x1: two hours on a laptop.

`ddpmpp_nll_st_official` is the same with the official parametrization, times and constant rate. The files are those of
Debian's dataset-fashion-mnist, or of the original release in --config.data.dir.

Command:   python -m score_st.train --config configs/vp/FASHION_MNIST/ddpmpp_nll_st.py --workdir runs/fashion
Hardware:  2 CPU cores
Published: nothing; docs/results.md has what is measured here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import load


def get_config() -> ConfigDict:
    config = load("vp/FASHION_MNIST/ddpmpp_nll_st_official").unlock()
    config = presets.preconditioned(config, data_mean=-0.5598, data_std=0.661)
    config.optim.lr = 2e-3
    config.sampling.update(predictor="dpm_solver_2m", grid="logsnr", steps=20)
    return config
