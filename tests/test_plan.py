"""The command `plan`: the search for settings that fit, the cache, the table."""

import json
import re
import sys
from pathlib import Path

import pytest
from support.commands import DIGITS, OFFICIAL_DIGITS, refused
from support.tpu_programs import FakeProgram

from score_st import plan
from score_st.config import load
from score_st.planning import planner, tpu

SMALL = ["--config", DIGITS, "--topology", "v5e:2x2", "--config.training.batch_size=32", "--config.model.nf=8"]
SMALL += ["--config.training.dtype=bfloat16", "--config.training.remat=blocks"]


@pytest.fixture
def compiled():
    """The texts of the programs that were compiled."""
    return []


@pytest.fixture
def jobs(compiled):
    """Programs that need 160 GiB besides a state of 2, in float32 and without micro-batches."""

    def lower(config, topology):
        micro = config.optim.num_micro_batch
        half = 2 ** -((config.training.dtype == "bfloat16") + (config.training.remat == "blocks"))
        program = FakeProgram(f"{config.model.nf} {micro}", 2 + 160 * half / micro, compiled)
        return planner.Job(program, 2 * 2**30, 8, 1e11, micro)

    return {"train": lower}


def test_search_and_cache(jobs, compiled, tmp_path, capsys):
    command = [*SMALL, "--cache", str(tmp_path)]
    plan.main(command, jobs)
    printed = capsys.readouterr().out
    assert "does not fit: needs 42.00 of 15.75 GiB" in printed
    assert "12.00 GiB: --config.optim.num_micro_batch=4\n" in printed
    first = list(compiled)
    table, out = tmp_path / "plans.md", tmp_path / "plans.json"
    plan.main([*command, "--search", "--table", str(table), "--out", str(out)], jobs)
    assert len(compiled) == len(set(compiled)) == 2 and compiled[:1] == first
    result = json.loads(out.read_text())[-1]
    assert result["fits"] and result["overrides"]["optim.num_micro_batch"] == "4"
    assert result["hbm"] == 3 * 2**30 and result["flops"] == 4e12
    assert "optim.num_micro_batch=4" in table.read_text().splitlines()[-1]
    plan.main([*command, "--search"], jobs)
    assert len(compiled) == 2


@pytest.mark.parametrize("mixture", [{"training.mixed": "True"}, {"training.loss": "mixture"}])
def test_images_that_share_a_value_of_the_loss_are_never_split(mixture):
    """8 images a chip are 4 pairs, for 2 or 4 micro-batches."""
    settings = {"training.batch_size": "32", "training.dtype": "bfloat16", "training.remat": "blocks"}
    smaller = list(planner.smaller_settings(load(OFFICIAL_DIGITS, settings | mixture), "train", chips=4))
    assert smaller[:2] == [({"optim.num_micro_batch": 2}, 1 / 2, 1), ({"optim.num_micro_batch": 4}, 1 / 4, 1)]
    assert smaller[2:] == [({"optim.num_micro_batch": 4, "training.fsdp": 4}, 1 / 4, 4)]


def test_only_cached(jobs, compiled, tmp_path, capsys):
    table = tmp_path / "plans.md"
    command = [*SMALL, "--cache", str(tmp_path / "cache"), "--cached", "--search", "--table", str(table)]
    plan.main(command, jobs)
    assert not compiled and not capsys.readouterr().out and not (tmp_path / "cache").exists()
    assert "| not compiled yet |" in table.read_text().splitlines()[-1]


def test_bad_requests(capsys, monkeypatch):
    error = refused(capsys, plan.main, ["--config", DIGITS, "--topology", "v5e:3x5"])
    assert "--topology v5e:3x5: unknown; choose from v4:2x2x1" in error and "v5e:4x4" in error
    monkeypatch.setitem(sys.modules, "libtpu", None)  # as if it were not installed
    error = refused(capsys, plan.main, ["--config", DIGITS, "--topology", "v5e:2x2"])
    assert "pip install -e '.[plan]'" in error


def test_the_page_of_plans():
    """docs/plans.md begins as --table writes it."""
    text = (Path(__file__).parents[1] / "docs/plans.md").read_text()
    (command,) = re.findall(r"^    (python -m score_st.plan .*)$", text, re.MULTILINE)
    assert text.startswith(plan.HEADER.format(formula=tpu.FORMULA, command=command))
