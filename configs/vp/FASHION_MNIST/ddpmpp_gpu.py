"""Preconditioned DDPM++ + Soft Truncation on Fashion-MNIST in a black frame, 32x32x1: for one GPU.

The network has nine times as many parameters as that of `ddpmpp_nll_st`, and sees 18 times as many images.

Command:   python -m score_st.train --config configs/vp/FASHION_MNIST/ddpmpp_gpu.py --workdir runs/fashion_gpu
Hardware:  one H100, for 8 minutes with compilation: it does 29.6 steps/s
Published: nothing; docs/results.md has what 2,000 steps, a minute of training, reach
"""

from ml_collections import ConfigDict

from score_st.config import load


def get_config() -> ConfigDict:
    config = load("vp/FASHION_MNIST/ddpmpp_nll_st").unlock()
    config.training.update(n_iters=10000, batch_size=512, tau_groups=128, dtype="bfloat16", n_jitted_steps=10)
    config.training.update(log_freq=500, eval_freq=2000, snapshot_freq=5000, snapshot_freq_for_preemption=2500)
    config.training.eval_images = 1024
    config.optim.update(lr=1e-3, warmup=500)
    config.model.update(nf=64, ch_mult=(1, 2, 2), num_res_blocks=2, ema_rate=0.9995, dropout=0.1)
    config.eval.update(batch_size=1000, group=250)
    config.sampling.update(batch_size=1000, group=250)
    return config
