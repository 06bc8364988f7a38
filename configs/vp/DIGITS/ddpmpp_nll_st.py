"""DDPM++ (VP, NLL) + Soft Truncation on scikit-learn's digits, 8x8x1 with 17 levels: a whole run on a laptop.

Command:   python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
Hardware:  2 CPU cores
Published: nothing; the README says what it measures
"""

from score_st.config import default


def get_config():
    config = default()
    config.training.update(
        sde="vpsde", st=True, k=1.0, reduce_mean=True, likelihood_weighting=False, n_iters=1300, batch_size=128
    )
    config.training.update(
        log_freq=50, eval_freq=50, snapshot_freq=1300, snapshot_freq_for_preemption=250, snapshot_sampling=True
    )
    config.data.update(
        dataset="DIGITS",
        image_size=8,
        num_channels=1,
        num_levels=17,
        centered=True,
        dequantization="uniform",
        random_flip=False,
    )
    config.model.update(
        embedding_type="positional", nf=32, ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(4,), ema_rate=0.995
    )
    config.optim.update(lr=1e-3, warmup=100)
    config.eval.update(enable_bpd=True, batch_size=100, nelbo_iter=10)
    config.sampling.update(method="ode", batch_size=64)
    return config
