"""Settings of a run of the digits with random weights, which tests of sampling share."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs/vp/DIGITS/ddpmpp_nll_st.py")
SETTINGS = {"model.nf": "8", "model.ch_mult": "(1,)", "model.attention": "False", "sampling.group": "4"}
SETTINGS |= {"sampling.method": "pc", "sampling.batch_size": "6", "model.num_scales": "4"}
