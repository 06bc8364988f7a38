"""DDPM++ deep (VP, FID) on CIFAR-10: 8 residual blocks per resolution, no Soft Truncation.

Command:   python -m score_st.train --config configs/vp/CIFAR10/ddpmpp_fid_deep.py \\
             --workdir runs/cifar10_ddpmpp_fid_deep
Hardware:  not published with the official code
Published: not verified here
"""

from ml_collections import ConfigDict

from score_st import presets
from score_st.config import default


def get_config() -> ConfigDict:
    config = presets.ddpmpp(presets.cifar10(default()))
    config.training.update(importance_sampling=False, likelihood_weighting=False)
    config.model.num_res_blocks = 8
    config.sampling.batch_size = 512
    config.eval.batch_size = 100
    return config
