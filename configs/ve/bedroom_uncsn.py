"""UNCSN++ (RVE) on LSUN bedroom 256x256.

Command:   python -m score_st.train --config configs/ve/bedroom_uncsn.py --workdir runs/bedroom_uncsn
Hardware:  not published with the official code
Published: FID 4.57 for "UDM (RVE) + ST" (as Papers with Code lists it for arXiv 2106.05527), which need not be this
           file: it has no ST

The official file asks for the SDE 'rve-sde', which its code does not know: it is reciprocal_vesde by an earlier
name. Soft Truncation is off; training.st=True turns it on, with the prior uniform in 1/τ (k=2.0).
"""

from score_st import presets
from score_st.config import default


def get_config():
    config = presets.rve(presets.ncsnpp256(presets.pixels256(default(), "LSUN")))
    config.data.category = "bedroom"
    config.model.sigma_max = 378.0
    return config
