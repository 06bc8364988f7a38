"""DDPM++ (VP, NLL) + Soft Truncation on scikit-learn's digits, 8x8x1 with 17 levels: a whole run on a laptop.

With the unbounded time label, so U-DDPM++; `--config.training.unbounded_parametrization=False` is the bounded one.

Command:   python -m score_st.train --config configs/vp/DIGITS/ddpmpp_nll_st.py --workdir runs/digits
Hardware:  2 CPU cores
Published: nothing; the README says what it measures
"""

from score_st.config import default


def get_config():
    config = default()
    # small batches for many updates; eight τ a step, as on eight devices, since one makes the gradient much noisier
    config.training.update(
        sde="vpsde", st=True, k=1.0, reduce_mean=True, likelihood_weighting=False, unbounded_parametrization=True
    )
    config.training.update(n_iters=3600, batch_size=32, tau_groups=8)
    config.training.update(
        log_freq=100, eval_freq=100, snapshot_freq=3600, snapshot_freq_for_preemption=500, snapshot_sampling=True
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
    # no dropout: its random bits take a tenth of a step, and so short a run hardly overfits
    config.model.update(
        embedding_type="positional",
        nf=48,
        ch_mult=(1, 1),
        num_res_blocks=1,
        attn_resolutions=(4,),
        ema_rate=0.999,
        dropout=0.0,
    )
    config.optim.update(lr=2e-3, warmup=100)
    config.eval.update(enable_bpd=True, batch_size=104, group=13, nelbo_iter=10, gradient_images=8)
    config.eval.update(rtol=3e-4, atol=3e-4)
    config.sampling.update(method="ode", batch_size=64, rtol=1e-3, atol=1e-3)
    return config
