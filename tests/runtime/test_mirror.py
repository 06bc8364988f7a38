"""Folders in buckets: what is uploaded when, and read back."""

import fcntl
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import buckets

from score_st.config import ConfigError
from score_st.runtime import mirror, storage
from score_st.runtime.mirror import MARKER, Mirror


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request, tmp_path_factory):
    with buckets.serve(request.param, tmp_path_factory.mktemp("objects")) as store:
        yield store


@pytest.fixture
def url(store, request):
    return f"{store.url}/{request.node.name.partition('[')[0]}"


def names(url):
    return [item.path for item in storage.listing(url)]


def opened(url, **options):
    new = Mirror(url, **options)
    new.download()
    new.start()
    return new


def test_a_folder_comes_back_as_it_was(url):
    first = opened(url)
    (first.path / "eval").mkdir()
    (first.path / "eval/bpd.json").write_text("{}")
    (first.path / "metrics.jsonl").write_text("1\n2\n")
    (first.path / ".temporary").write_text("")
    first.close()
    assert not first.path.exists()
    second = opened(url)
    files = {p.relative_to(second.path).as_posix(): p.read_text() for p in second.path.rglob("[!.]*") if p.is_file()}
    assert files == {"eval/bpd.json": "{}", "metrics.jsonl": "1\n2\n"}
    (second.path / "eval/bpd.json").unlink()
    (second.path / "snapshot").write_text("5")
    second.close()
    assert names(url) == ["metrics.jsonl.0000.000000000000", "snapshot"]


def test_a_log_goes_in_parts_of_complete_lines(url):
    one = opened(url)
    log = one.path / "metrics.jsonl"
    for content, parts in (("1\n2", 1), ("\n3\n", 2), ("", 2)):
        with log.open("a") as file:
            file.write(content)
        one.flush()
        assert len(names(url)) == parts
    contents = [storage.get_bytes(storage.join(url, name)) for name in names(url)]
    assert contents == [b"1\n", b"2\n3\n"]
    assert names(url) == ["metrics.jsonl.0000.000000000000", "metrics.jsonl.0000.000000000002"]
    # what was uploaded stays if the file is written anew with the same beginning, and goes if that differs
    (one.path / ".new").write_text("1\n2\n3\n4\n")
    (one.path / ".new").replace(log)
    one.flush()
    assert names(url)[2:] == ["metrics.jsonl.0000.000000000006"]
    (one.path / ".new").write_text("1\n5\n")
    (one.path / ".new").replace(log)
    one.flush()
    assert names(url) == ["metrics.jsonl.0001.000000000000"]
    one.close()
    two = opened(url)
    assert (two.path / "metrics.jsonl").read_text() == "1\n5\n"
    two.close()


def test_many_parts_become_one(url):
    one = opened(url)
    with (one.path / "metrics.jsonl").open("a") as file:
        for i in range(mirror.MOST_PARTS + 3):
            file.write(f"{i}\n")
            file.flush()
            one.sync()
    assert len(names(url)) == 3
    one.close()
    two = opened(url)
    assert (two.path / "metrics.jsonl").read_text().split() == [str(i) for i in range(mirror.MOST_PARTS + 3)]
    two.close()


def test_events_are_cut_where_a_record_ends(url):
    """TensorBoard reads one file after the other, in the order of their names."""
    import tensorboardX

    one = opened(url)
    board = tensorboardX.SummaryWriter(str(one.path / "tensorboard"))
    for step in range(20):
        board.add_scalar("loss", step, step)
        board.flush()
        one.sync()
    contents = [storage.get_bytes(storage.join(url, name)) for name in names(url)]
    assert len(contents) >= 20 and all(
        mirror.complete("events.out.tfevents.1", part) == len(part) for part in contents
    )
    local = next((one.path / "tensorboard").iterdir()).read_bytes()
    assert b"".join(contents) == local and mirror.complete("events.out.tfevents.1", local[:-3]) < len(local) - 3
    one.close()


def test_a_checkpoint_counts_once_its_marker_is_there(url):
    folder = "averages"  # read whole, not only the newest
    one = opened(url)
    for step in (1, 2):
        (one.path / folder / str(step)).mkdir(parents=True)
        (one.path / folder / str(step) / MARKER).write_text("done")
        (one.path / folder / str(step) / "data").write_text(str(step))
    one.close()
    storage.remove(storage.join(url, folder, "1", MARKER))
    two = Mirror(url)
    two.download()
    if url.startswith("s3"):  # on gs:// Orbax reads them
        assert [p.name for p in (two.path / folder).iterdir()] == ["2"]
        two.bring(f"{folder}/1")
        assert not (two.path / folder / "1").exists()
    two.close()


def test_an_outage_is_survived_and_said_once(store, url, capsys):
    one = opened(url)
    (one.path / "metrics.jsonl").write_text("1\n")
    one.flush()
    store.proxy.set("refuse")
    (one.path / "metrics.jsonl").open("a").write("2\n")
    with pytest.raises(storage.Unreachable, match="does not answer for 1 s"):
        one.flush(patience=1)
    began = time.monotonic()
    with pytest.raises(storage.Interrupted):
        one.flush(lambda: time.monotonic() > began + 0.5)
    assert time.monotonic() < began + 2
    store.proxy.set("pass")
    one.close()
    two = opened(url)
    assert (two.path / "metrics.jsonl").read_text() == "1\n2\n"
    two.close()


def test_a_new_folder_is_not_taken_for_that_of_a_killed_process(monkeypatch):
    """Another process may look for those at any moment, also before the new one is locked."""
    flock = fcntl.flock

    def lock(file, how):
        if how == fcntl.LOCK_EX:
            mirror.delete_abandoned()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    new = Mirror("gs://bucket/run")
    assert (new.path / mirror.OWNED).exists()
    new.close()


def test_the_folders_of_killed_processes_are_deleted(url):
    make = f"from score_st.runtime.mirror import Mirror; print(Mirror({url!r}).path, flush=True)"
    code = f"{make}; import os; os._exit(9)"
    killed = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
    assert (killed / mirror.OWNED).exists()
    alive = opened(url)
    assert alive.path.exists() and not killed.exists()
    mirror.delete_abandoned()
    assert alive.path.exists()
    alive.close()


def test_what_could_not_be_uploaded_is_kept(store, url):
    one = opened(url)
    store.proxy.set("refuse")
    (one.path / "eval.json").write_text("{}")
    with pytest.raises(storage.Unreachable, match=f"what is not there yet is in {one.path}"):
        one.close(patience=0.5)
    mirror.delete_abandoned()
    assert (one.path / "eval.json").read_text() == "{}"
    store.proxy.set("pass")
    one.close()


def test_a_hanging_server_is_an_outage(store, url):
    store.proxy.set("hang")
    began = time.monotonic()
    try:
        with pytest.raises(storage.Unreachable, match="does not answer within 2 s"):
            storage.probe([url], seconds=2)
        assert not storage.answers(url, 1)
    finally:
        store.proxy.set("pass")
    assert time.monotonic() < began + 6


def test_the_probe_leaves_nothing_and_says_what_is_wrong(store, url):
    storage.probe([url])
    assert names(url) == []
    with pytest.raises(ConfigError, match=f"{store.scheme}://no-such-bucket"):
        storage.probe([f"{store.scheme}://no-such-bucket/run"])
    with pytest.raises(ConfigError, match="nothing there"):
        storage.probe([], [f"{url}/missing"])


@pytest.mark.parametrize("place", ["http://bucket/run", "gs://", "gs:///"])
def test_other_urls_are_refused(place):
    with pytest.raises(ConfigError, match="should be a local path, gs://bucket/folder or s3://bucket/folder"):
        storage.scheme(place)


def test_local_paths_are_no_urls(tmp_path):
    assert storage.scheme("runs/a") == storage.scheme(Path("/a/b")) == ""
    assert mirror.url_of(tmp_path) == "" and mirror.shown(tmp_path) == str(tmp_path)
    assert json.dumps(mirror.of(tmp_path)) == "null"
