"""DDPM++ (VP, NLL) + Soft Truncation on Fashion-MNIST in a black frame, 32x32x1: two hours on a laptop.

The unbounded time label, so U-DDPM++. The files are those of Debian's dataset-fashion-mnist, or of the original
release in --config.data.dir.

Command:   python -m score_st.train --config configs/vp/FASHION_MNIST/ddpmpp_nll_st.py --workdir runs/fashion
Hardware:  2 CPU cores
Published: nothing
"""

from score_st.config import default


def get_config():
    config = default()
    config.training.update(
        sde="vpsde", st=True, k=1.0, reduce_mean=True, likelihood_weighting=False, unbounded_parametrization=True
    )
    config.training.update(n_iters=8000, batch_size=32, tau_groups=8)
    config.training.update(
        log_freq=50, eval_freq=200, snapshot_freq=4000, snapshot_freq_for_preemption=500, snapshot_sampling=True
    )
    config.data.update(
        dataset="FASHION_MNIST",
        image_size=32,
        num_channels=1,
        centered=True,
        dequantization="uniform",
        random_flip=False,
    )
    config.model.update(
        embedding_type="positional",
        nf=32,
        ch_mult=(1, 2, 2),
        num_res_blocks=1,
        attn_resolutions=(8,),
        ema_rate=0.999,
        dropout=0.0,
    )
    config.optim.update(lr=1e-3, warmup=200)
    config.eval.update(batch_size=100, group=25, nelbo_iter=1, gradient_images=8)
    config.eval.update(rtol=3e-4, atol=3e-4, solver="Bosh3")
    config.sampling.update(method="ode", batch_size=64, rtol=1e-3, atol=1e-3)
    return config
