"""UNCSN++ (RVE) on FFHQ 1024x1024.

Command:   python -m score_st.train --config configs/ve/ffhq_1024_uncsn.py --workdir runs/ffhq_1024_uncsn
Hardware:  not published with the official code
Published: not verified here

The official file asks for the SDE 'rve-sde', which its code does not know: it is reciprocal_vesde by an earlier
name. It leaves out what came later (importance_sampling, num_micro_batch, ...): these are as for NCSN++ of
score_sde. Soft Truncation is off; training.st=True turns it on, with the prior uniform in 1/τ (k=2.0).
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.ncsnpp1024(presets.pixels1024(default(), "FFHQ"))
    config = presets.rve(config, sigma_min=1e-4)
    config.training.update(batch_size=16, n_iters=240000001, reduce_mean=True)
    config.sampling.batch_size = 16
    config.eval.batch_size = 40
    config.data.tfrecords_path = "FFHQ_1024/ffhq-r10.tfrecords"
    return config
