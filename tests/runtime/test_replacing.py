"""Files appear complete or not at all."""

import pytest

from score_st.runtime.replacing import replacing


@pytest.mark.parametrize("mark", ["", ".7"])
def test_a_file_is_replaced_once_it_is_complete(tmp_path, mark):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, mark) as temporary:
        temporary.write_text("new")
        assert (temporary.name, path.read_text()) == (f".a.txt{mark}", "old")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("begun", [True, False])
def test_what_fails_leaves_the_old_file_alone(tmp_path, error, begun):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        if begun:
            temporary.write_text("ne")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
