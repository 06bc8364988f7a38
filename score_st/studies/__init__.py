"""Studies: cells of a grid of settings, trained with several seeds each, measured alike and compared.

A study is a Python file that defines `STUDY`; `python -m score_st.study` runs it.
"""

from score_st.studies.definition import At, Comparison, Part, Study, grid
from score_st.studies.experts import Experts
from score_st.studies.gradients import Gradients
from score_st.studies.measures import BitsPerDim, LossByTime, Samples
from score_st.studies.shared import DIGITS, NO_TAU, PLAIN, SAMPLER

__all__ = [
    "DIGITS",
    "NO_TAU",
    "PLAIN",
    "SAMPLER",
    "At",
    "BitsPerDim",
    "Comparison",
    "Experts",
    "Gradients",
    "LossByTime",
    "Part",
    "Samples",
    "Study",
    "grid",
]
