"""UNCSN++ (RVE) on FFHQ 1024x1024.

Command:   python -m score_st.train --config configs/ve/ffhq_1024_uncsn.py --workdir runs/ffhq_1024_uncsn
Hardware:  not published with the official code
Published: not verified here

The official file names the SDE 'rve-sde', which the official code does not know: it is an earlier name of
reciprocal_vesde. It lacks the keys that came later (importance_sampling, num_micro_batch, ...); here they are those
of score_sde's NCSN++. Soft Truncation is off; training.st=True turns it on, with a prior that is uniform in 1/τ
(k=2.0).
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ncsnpp1024(presets.pixels1024(default(), "FFHQ"))
    config = presets.rve(config, sigma_min=1e-4)
    config.training.update(batch_size=16, n_iters=240000001, reduce_mean=True)
    config.sampling.batch_size = 16
    config.eval.batch_size = 40
    config.data.tfrecords_path = "FFHQ_1024/ffhq-r10.tfrecords"
    return config
