"""The workdir's configuration: what has to agree with an earlier run, and the copy of a user's own file."""

import json
from pathlib import Path

import pytest

from score_st import config
from score_st.config import ConfigError
from score_st.runtime.workdir import check_same, check_writable, claim_workdir

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


DAMAGED = {
    "missing": (None, "has checkpoints, but no config.json"),
    "empty": (b"", "its config.json is damaged"),
    "cut": (b'{"seed": 4', "its config.json is damaged"),
    "binary": (b"\xff\x00\xfe", "its config.json is damaged"),
    "list": (b"[]", "its config.json is damaged (list instead of an object)"),
    "number": (b"3", "its config.json is damaged (int instead of an object)"),
    "deep": (b"[" * 100_000, "its config.json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_config_json_is_an_error_and_stays(name, tmp_path):
    """It never switches the comparison off, and is never overwritten."""
    content, message = DAMAGED[name]
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    for _ in range(2):
        with pytest.raises(config.ConfigError) as error:
            claim_workdir(tmp_path, config.load("vp/DIGITS/ddpmpp_nll_st"), every_key)
        assert message in str(error.value) and str(tmp_path) in str(error.value)
    assert (tmp_path / "config.json").exists() == (content is not None)
    assert content is None or (tmp_path / "config.json").read_bytes() == content


def test_a_config_json_that_is_a_folder_is_an_error(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(config.ConfigError, match=r"its config.json can't be read \(Is a directory\)"):
        claim_workdir(tmp_path, config.load("vp/DIGITS/ddpmpp_nll_st"), every_key)
    assert list(tmp_path.iterdir()) == [tmp_path / "config.json"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to")
def test_a_folder_that_can_not_be_written_is_found_before_the_work(tmp_path):
    with pytest.raises(ConfigError, match=r"^/proc/run/eval: can't be written \(.*\); --out names another folder$"):
        check_writable(Path("/proc/run/eval"), "--out names another folder")
    check_writable(tmp_path / "run/eval", "--out names another folder")
    assert not list(tmp_path.iterdir())
