"""DDPM++ (VP, NLL) + Soft Truncation on scikit-learn's digits, 8x8x1 with 17 levels: a complete run on a laptop.

The time conditioning is unbounded, so this is U-DDPM++; `--config.training.unbounded_parametrization=False` makes
it DDPM++.

Command:   python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st_official.py --workdir runs/official
Hardware:  2 CPU cores
Published: nothing; docs/results.md has what is measured here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.laptop(default())
    config.training.update(n_iters=3600, snapshot_freq=3600)
    config.data.update(dataset="DIGITS", image_size=8, num_levels=17)
    config.model.update(nf=48, ch_mult=(1, 1), attn_resolutions=(4,))
    config.optim.update(lr=2e-3, warmup=100)
    config.eval.update(enable_bpd=True, batch_size=104, group=13, nelbo_iter=10, from_x0=False)
    return config
