"""Soft Truncation (Kim et al., ICML 2022, arXiv 2106.05527) in JAX.

`load(workdir)` returns a trained `Model`. The SDEs and the modules of `score_st.diffusion` serve any network
(docs/python.md). `import score_st` alone imports nothing else; names are imported when they are first used (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from score_st.api import Model, load
    from score_st.config import ConfigError
    from score_st.diffusion import (
        correctors,
        guidance,
        likelihood,
        losses,
        parametrization,
        predictors,
        probability_flow,
        samplers,
        sde,
        time_sampling,
        truncation,
        weighting,
    )
    from score_st.diffusion.sde import RVE, SDE, VE, VP, SubVP

__all__ = [
    "RVE",
    "SDE",
    "VE",
    "VP",
    "ConfigError",
    "Model",
    "SubVP",
    "correctors",
    "guidance",
    "likelihood",
    "load",
    "losses",
    "parametrization",
    "predictors",
    "probability_flow",
    "samplers",
    "sde",
    "time_sampling",
    "truncation",
    "weighting",
]
_HOMES = {"load": "api", "Model": "api", "ConfigError": "config"}
_HOMES |= dict.fromkeys(("SDE", "VP", "SubVP", "VE", "RVE"), "diffusion.sde")


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'score_st' has no attribute {name!r}")
    if home := _HOMES.get(name):
        return getattr(importlib.import_module(f"score_st.{home}"), name)
    return importlib.import_module(f"score_st.diffusion.{name}")


def __dir__() -> list[str]:
    """Returns the public names."""
    return __all__
