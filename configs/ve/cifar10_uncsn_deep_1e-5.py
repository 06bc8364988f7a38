"""UNCSN++ deep (RVE) on CIFAR-10 with σ_min = 1e-5, importance sampling and likelihood weighting.

Command:   python -m score_st.train --config configs/ve/cifar10_uncsn_deep_1e-5.py \\
             --workdir runs/cifar10_uncsn_deep_1e-5
Hardware:  not published with the official code
Published: not verified here

The official file names the SDE 'rve-sde', which the official code does not know: it is an earlier name of
reciprocal_vesde. The official files with and without '_mid' differ only in uncsn.threshold, which the official code
never reads. Soft Truncation is off; training.st=True turns it on, with a prior that is uniform in 1/τ (k=2.0).
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.rve(presets.ncsnpp(presets.cifar10(default())), sigma_min=1e-5)
    config.training.update(importance_sampling=True, likelihood_weighting=True)
    config.model.num_res_blocks = 8
    return config
