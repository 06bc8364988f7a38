"""DDPM++ (VP, NLL) + Soft Truncation on Fashion-MNIST in a black frame, 32x32x1: two hours on a laptop.

The time conditioning is unbounded, so this is U-DDPM++. The files are those of Debian's dataset-fashion-mnist, or
of the original release in --config.data.dir.

Command:   python -m score_st.train --config configs/vp/FASHION_MNIST/ddpmpp_nll_st_official.py --workdir runs/before
Hardware:  2 CPU cores
Published: nothing; measured here (docs/results.md): NLL 2.455, NELBO 2.49 bits/dim on all 10,000 test images
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.laptop(default())
    config.training.update(n_iters=9000, log_freq=50, eval_freq=500, snapshot_freq=4500)
    # after so short a training the score is still off at large times: the ODE adds up these errors, noise forgets them
    config.sampling.update(method="pc", predictor="ancestral_sampling", steps=200)
    config.data.update(dataset="FASHION_MNIST", image_size=32)
    config.model.update(nf=16, ch_mult=(1, 2, 4), attn_resolutions=(8,))
    config.optim.update(lr=1e-3, warmup=200)
    config.eval.update(batch_size=100, group=25, solver="Bosh3", rtol=1e-3, atol=1e-3, from_x0=False)
    return config
