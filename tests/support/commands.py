"""Tiny settings, and the commands as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from score_st import config
from score_st.runtime import cli
from support.environment import QUICK

ROOT = Path(__file__).parents[2]
DIGITS = "configs/vp/DIGITS/ddpmpp_nll_st.py"
OFFICIAL_DIGITS = "configs/vp/DIGITS/ddpmpp_nll_st_official.py"
SMALL = str(ROOT / "tests/support/small.py")
TINY = {
    "model.nf": "8",
    "model.ch_mult": "(1,)",
    "model.num_res_blocks": "1",
    "model.attention": "False",
    "training.batch_size": "16",
}


def tiny(**more):
    return config.load(
        ROOT / OFFICIAL_DIGITS, TINY | {key.replace("__", "."): str(value) for key, value in more.items()}
    )


def run(*arguments, **options):
    """A command in a process of its own with one device."""
    environment = os.environ | {"XLA_FLAGS": QUICK}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, **options)


def overrides(**more):
    settings = TINY | {key.replace("__", "."): value for key, value in more.items()}
    return [f"--config.{key}={value}" for key, value in settings.items()]


def refused(capsys, main, argv) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: main([str(word) for word in argv]))
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.count("\n") == 0 and "error: " in error
    return error
