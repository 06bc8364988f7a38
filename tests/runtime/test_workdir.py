"""The workdir's configuration: what has to agree with an earlier run, and the copy of a user's own file."""

import json

import pytest

from score_st import config
from score_st.runtime.workdir import check_same, claim_workdir

every_key = lambda key: True


def base(file) -> dict:
    return {"file": str(file), "config": config.read(file).to_dict()}


def test_a_users_configuration_file_is_kept(tmp_path):
    """Not one of the package; and in a run that is started with its own copy, the copy stays."""
    packaged, own, copy = "vp/DIGITS/ddpmpp_nll_st", tmp_path / "own.py", tmp_path / "run/config.py"
    own.write_text(config.find(packaged).read_text() + "\n# of a user\n")
    for file in (packaged, config.find(packaged)):
        claim_workdir(tmp_path / "run", config.load(file), every_key, base(file))
        assert not copy.exists()
    for file in (own, copy):
        claim_workdir(tmp_path / "run", config.load(file), every_key, base(file))
        assert copy.read_text() == own.read_text()
    assert json.loads((tmp_path / "run/config_base.json").read_text())["file"] == str(copy)


def test_a_key_that_an_older_workdir_lacks_counts_as_its_default(tmp_path):
    c = config.load("vp/DIGITS/ddpmpp_nll_st")
    workdir = claim_workdir(tmp_path, c, every_key)
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["optim"].pop("num_micro_batch") == 1
    (workdir / "config.json").write_text(json.dumps(stored))
    check_same(workdir, c, every_key)
    other = config.load("vp/DIGITS/ddpmpp_nll_st", {"optim.num_micro_batch": "2"})
    with pytest.raises(config.ConfigError, match=r"was made with optim.num_micro_batch=1 \(not 2\)"):
        check_same(workdir, other, every_key)
    check_same(workdir, other, lambda key: key.startswith("model."))
