"""UNCSN++ deep (RVE) on CIFAR-10 with σ_min = 1e-5, importance sampling and likelihood weighting.

Command:   python -m score_st.train --config configs/ve/cifar10_uncsn_deep_1e-5.py \\
             --workdir runs/cifar10_uncsn_deep_1e-5
Hardware:  not published with the official code
Published: not verified here

The official file asks for the SDE 'rve-sde', which its code does not know: it is reciprocal_vesde by an earlier
name. The official files with and without '_mid' differ in uncsn.threshold alone, which the official code never
reads. Soft Truncation is off; training.st=True turns it on, with the prior uniform in 1/τ (k=2.0).
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.rve(presets.ncsnpp(presets.cifar10(default())), sigma_min=1e-5)
    config.training.update(importance_sampling=True, likelihood_weighting=True)
    config.model.num_res_blocks = 8
    return config
