"""Soft Truncation (Kim et al., ICML 2022, arXiv 2106.05527) in JAX.

`load(workdir)` gives a trained `Model`; `VP`, `truncation`, `losses` and the rest serve any network (docs/python.md).
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from score_st import control, likelihood, losses, ode, sampling, sde, times, truncation  # LOCAL
    from score_st.api import Model, load
    from score_st.config import ConfigError
    from score_st.diffusion.sde import RVE, SDE, VE, VP, SubVP

_HOME = {"load": "api", "Model": "api", "ConfigError": "config"}
_HOME |= dict.fromkeys(("SDE", "VP", "SubVP", "VE", "RVE"), "sde")
__all__ = ["RVE", "SDE", "VE", "VP", "ConfigError", "Model", "SubVP", "load"]
__all__ += ["control", "likelihood", "losses", "ode", "sampling", "sde", "times", "truncation"]


def __getattr__(name: str):
    """What is asked for is imported then (PEP 562): `import score_st` alone takes no time."""
    if name not in __all__:
        raise AttributeError(f"module 'score_st' has no attribute {name!r}")
    module = importlib.import_module(f"score_st.{_HOME.get(name, name)}")
    return getattr(module, name) if name in _HOME else module


def __dir__():
    return __all__
