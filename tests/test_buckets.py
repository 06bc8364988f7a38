"""The commands with workdirs in buckets: killed, resumed, evaluated, and through outages."""

import json
import os
import signal
import sys
import time

import jax
import numpy as np
import pytest
from support import buckets
from support.commands import SMALL, overrides
from support.environment import QUICK
from support.processes import ended, final_state, launched, start

from score_st import copy, load
from score_st.runtime import storage
from score_st.runtime.mirror import Mirror

SETTINGS = dict(training__n_iters=24, training__snapshot_freq=12, training__snapshot_freq_for_preemption=3)
SETTINGS |= dict(training__eval_images=16, training__eval_freq=6)
TRAIN = [sys.executable, "-m", "score_st.train", "--config", SMALL, *overrides(**SETTINGS)]


@pytest.fixture(scope="module")
def environment():
    return lambda: os.environ | dict(XLA_FLAGS=QUICK)


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request, tmp_path_factory):
    with buckets.serve(request.param, tmp_path_factory.mktemp("objects")) as store:
        yield store


@pytest.fixture(scope="module")
def uninterrupted(environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("local") / "run"
    code, output = ended(start(environment(), *TRAIN, "--workdir", workdir))
    assert code == 0, output
    return workdir


def logged(url):
    """The lines of the log in the bucket, and the step of each."""
    mirror = Mirror(url)
    mirror.download(lambda path: path == "metrics.jsonl")
    path = mirror.path / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    mirror.close()
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def await_logged(process, url, step):
    while process.poll() is None and step not in logged(url):
        time.sleep(0.2)


def same(workdir, url, tmp_path):
    """Whether the run in the bucket ended as the local one: the same bits, and the same losses."""
    copy.main(["--from", url, "--to", str(tmp_path / "copied"), "--quiet"])
    expected, actual = final_state(workdir), final_state(tmp_path / "copied")
    assert expected[1] == actual[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, expected[0], actual[0]))
    local = {line["step"]: line["loss"] for line in map(json.loads, (workdir / "metrics.jsonl").open())}
    assert logged(url) == local


def test_killed_resumed_and_used(store, environment, uninterrupted, tmp_path):
    url = f"{store.url}/killed"
    slow = start(environment(), *TRAIN, "--workdir", url, "--config.training.n_iters=1000")
    await_logged(slow, url, 3)
    slow.send_signal(signal.SIGKILL)
    assert ended(slow)[0] == -signal.SIGKILL
    lines = len(logged(url))
    assert lines >= 3
    code, output = ended(start(environment(), *TRAIN, "--workdir", url))
    assert code == 0, output
    same(uninterrupted, url, tmp_path)
    command = ["--config", SMALL, *overrides(**SETTINGS), "--workdir", url]
    sampled = [sys.executable, "-m", "score_st.sample", *command, "--num", 6, "--sampler", "ddim", "--steps", 3]
    code, output = ended(start(environment(), *sampled, "--config.sampling.batch_size=4"))
    assert code == 0 and f"wrote {url}/samples: 6 images" in output, output
    objects = [item.path for item in storage.listing(url)]
    assert {"samples/samples_0000000.npz", "samples/samples_0000004.npz", "samples/grid.png"} <= set(objects)
    code, output = ended(start(environment(), sys.executable, "-m", "score_st.report", "--workdir", url))
    assert code == 0 and f"wrote {url}/report.html" in output
    assert b"<html" in storage.get_bytes(f"{url}/report.html")
    model = load(url)
    assert model.step == 24


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside(store, environment, uninterrupted, tmp_path):
    url = f"{store.url}/damaged"
    code, output = ended(start(environment(), *TRAIN, "--workdir", url, "--config.training.n_iters=15"))
    assert code == 0, output
    objects = [item for item in storage.listing(f"{url}/checkpoints/15") if "/d/" in f"/{item.path}"]
    place = storage.join(f"{url}/checkpoints/15", max(objects, key=lambda item: item.size).path)
    content = bytearray(storage.get_bytes(place))
    content[len(content) // 2] ^= 1
    storage.put_bytes(bytes(content), place)
    code, output = ended(start(environment(), *TRAIN, "--workdir", url))
    kept = "it no longer counts" if store.scheme == "gs" else "it is now 15.damaged"
    assert code == 0 and f"warning: {url}/checkpoints/15 is damaged" in output and kept in output, output
    assert "step 13/24" in output
    same(uninterrupted, url, tmp_path)


def trained(environment, url, *more):
    """Starts a run and returns it once its first checkpoint is in the bucket."""
    process = start(environment(), *TRAIN, "--workdir", url, *more)
    while process.poll() is None and not any("commit_success" in item.path for item in storage.listing(url)):
        time.sleep(0.1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["refuse", "hang"])
def test_an_outage_changes_nothing(store, environment, uninterrupted, tmp_path, mode):
    url = f"{store.url}/outage_{mode}"
    process = trained(environment, url)
    store.proxy.set(mode)
    time.sleep(8)
    store.proxy.set("pass")
    code, output = ended(process)
    assert code == 0, output
    same(uninterrupted, url, tmp_path)


@pytest.mark.slow
def test_an_outage_that_never_ends(store, environment, uninterrupted, tmp_path):
    url = f"{store.url}/endless"
    rescue = tmp_path / "rescue"
    process = trained(environment, url, "--config.storage.patience=6", f"--config.storage.rescue={rescue}")
    store.proxy.set("refuse")
    try:
        code, output = ended(process)
    finally:
        store.proxy.set("pass")
    line = output.splitlines()[-1]
    assert code == 75 and line.startswith(f"error: {url}") and "Traceback" not in output, output
    assert "the last checkpoint there is of step " in line
    command = line.partition("`")[2].partition("`")[0]
    assert command == f"python -m score_st.copy --from {rescue} --to {url}"
    code, output = ended(start(environment(), sys.executable, *command.split()[1:]))
    assert code == 0 and output.strip() == f"wrote {url}"
    saved = int(line.partition("; step ")[2].split()[0])
    assert max(logged(url)) == saved
    code, output = ended(start(environment(), *TRAIN, "--workdir", url))
    assert code == 0, output
    same(uninterrupted, url, tmp_path)


@pytest.mark.slow
def test_sigterm_during_an_outage(store, environment):
    url = f"{store.url}/stopped"
    process = trained(environment, url)
    store.proxy.set("refuse")
    try:
        time.sleep(3)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code, output = ended(process)
    finally:
        store.proxy.set("pass")
    assert code == 143 and time.monotonic() < began + 25, output
    assert "error: stopped on SIGTERM, but " in output and "python -m score_st.copy --from " in output


def test_two_processes_share_a_bucket(store, environment, uninterrupted, tmp_path):
    url = f"{store.url}/pair"
    command = [*TRAIN, "--config.training.tau_groups=1"]
    code, output = ended(launched(environment(), url, "--processes", 2, "--devices", 4, command=command))
    if store.scheme == "s3":
        assert code == 2 and "gs://" in output.splitlines()[-1] and "Traceback" not in output
        return
    assert code == 0, output
    copy.main(["--from", url, "--to", str(tmp_path / "copied"), "--quiet"])
    expected, actual = final_state(uninterrupted), final_state(tmp_path / "copied")
    assert actual[1] == expected[1]
    assert max(logged(url)) == 24


@pytest.mark.parametrize("command", ["train", "sample"])
def test_what_is_wrong_with_a_bucket_is_said_first(store, environment, command):
    name = f"{store.scheme}://no-such-bucket/run"
    code, output = ended(start(environment(), sys.executable, "-m", f"score_st.{command}", "--config", SMALL,
                               "--workdir", name))  # fmt: skip
    assert code == 2 and output.count("\n") == 1 and output.startswith(f"error: {name}: there is no bucket"), output
