"""The lease of a workdir, on disks and on emulators of both stores, and the conditional writes that it needs."""

import concurrent.futures
import fcntl
import json
import math
import os
import socket
import subprocess
import threading
import time

import pytest
from support import buckets

from score_st.runtime import lease as module
from score_st.runtime import storage
from score_st.runtime.lease import Lease, LocalFile, StoredObject, Taken, began, identity, is_over, parse
from score_st.runtime.mirror import Mirror


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request, tmp_path_factory):
    with buckets.serve(request.param, tmp_path_factory.mktemp("objects")) as store:
        yield store


def test_a_second_create_is_refused(store):
    url = f"{store.url}/once"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: storage.put_if(f"{n}".encode(), url, ""), range(8)))
    assert sum(results) == 1
    content, version = storage.get_with_version(url)
    assert content == f"{results.index(True)}".encode()
    assert not storage.put_if(b"again", url, "") and storage.get_with_version(url) == (content, version)


def test_only_the_version_that_was_read_is_replaced(store):
    url = f"{store.url}/replaced"
    with pytest.raises(FileNotFoundError):
        storage.get_with_version(url)
    assert storage.put_if(b"first", url, "")
    _, first = storage.get_with_version(url)
    assert storage.put_if(b"second", url, first) and not storage.put_if(b"third", url, first)
    content, second = storage.get_with_version(url)
    assert content == b"second" and second != first


def test_a_lease_in_a_bucket(store):
    """Held, watched, released, and taken over from an owner that no longer renews it."""
    mirror = Mirror(f"{store.url}/run")
    first = Lease(mirror.path, 1.5)
    first.acquire()
    with pytest.raises(Taken, match=rf"--workdir {store.url}/run: process \d+ on .* trains there"):
        Lease(mirror.path, 1.5).acquire()
    first.check()
    first.release()
    assert StoredObject(f"{store.url}/run/.lease").read() is None
    gone = json.dumps(first.me | {"host": "elsewhere", "boot": "another", "seconds": 1}).encode()
    assert storage.put_if(gone, f"{store.url}/run/.lease", "")
    second = Lease(mirror.path, 1.5)
    second.acquire()
    assert parse(second.place.read())["token"] == second.me["token"]
    second.release()
    mirror.close()


SECONDS = 1.2


@pytest.fixture
def owner(tmp_path):
    lease = Lease(tmp_path, SECONDS)
    lease.acquire()
    yield lease
    lease.release()


def leave_behind(workdir, **changes):
    """Writes the lease of a process that renews it no more."""
    me = Lease(workdir, SECONDS).me
    (workdir / ".lease").write_text(json.dumps(me | {"token": "another", "host": "elsewhere"} | changes))


def acquired(workdir):
    """The seconds that it took."""
    began = time.monotonic()
    lease = Lease(workdir, SECONDS)
    lease.acquire()
    taken = time.monotonic() - began
    assert parse((workdir / ".lease").read_bytes())["token"] == lease.me["token"]
    lease.release()
    assert list(workdir.iterdir()) == []
    return taken


def test_a_lease_is_released_and_renewed(owner, tmp_path):
    first = parse((tmp_path / ".lease").read_bytes())
    time.sleep(SECONDS)
    later = parse((tmp_path / ".lease").read_bytes())
    assert later["counter"] > first["counter"] and later["token"] == first["token"]
    owner.check()
    owner.release()
    assert list(tmp_path.iterdir()) == []
    assert acquired(tmp_path) < SECONDS / 2


def test_a_lease_that_moves_is_refused_with_the_owner_named(owner, tmp_path):
    with pytest.raises(Taken, match=rf"process {os.getpid()} on {socket.gethostname()} trains there"):
        Lease(tmp_path, SECONDS).acquire()
    owner.check()


def test_one_that_does_not_move_is_taken_over(tmp_path):
    leave_behind(tmp_path, boot="another")
    assert SECONDS <= acquired(tmp_path) < SECONDS + 2


@pytest.mark.parametrize("damage", [{"seconds": math.inf}, {"seconds": [1]}, {"token": None}, {"attempt": "2"}])
def test_a_damaged_lease_is_taken_over(tmp_path, damage):
    leave_behind(tmp_path, boot="another", **damage)
    assert parse((tmp_path / ".lease").read_bytes()) == {}
    assert acquired(tmp_path) >= SECONDS


def test_what_is_no_lease_is_taken_over(tmp_path):
    (tmp_path / ".lease").write_bytes(b"\xff{")
    assert acquired(tmp_path) >= SECONDS


def test_a_dead_process_of_this_boot_is_taken_over_at_once(tmp_path):
    """Its number may have been given to another; one that lives is waited for."""
    with subprocess.Popen(["sleep", "60"]) as child:
        leave_behind(tmp_path, pid=child.pid, began=began(child.pid))
        assert not is_over(parse((tmp_path / ".lease").read_bytes()), identity())
        child.kill()
        assert acquired(tmp_path) < SECONDS / 2
    leave_behind(tmp_path, began=began(os.getpid()) - 1)
    assert acquired(tmp_path) < SECONDS / 2


def test_a_higher_attempt_of_the_same_job_takes_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    for job, attempt, at_once in (("7", 1, True), ("7", 2, False), ("8", 1, False)):
        leave_behind(tmp_path, boot="another", job=job, attempt=attempt)
        assert (acquired(tmp_path) < SECONDS / 2) == at_once


def test_an_owner_that_was_stopped_finds_another_token(tmp_path):
    """It stops before it writes, and leaves the lease of the other alone."""
    first = Lease(tmp_path, SECONDS)
    first.acquire()
    leave_behind(tmp_path, boot="another")
    first.renewed -= 10 * SECONDS  # as after SIGSTOP
    with pytest.raises(Taken, match="on elsewhere trains there"):
        first.check()
    first.release()
    assert parse((tmp_path / ".lease").read_bytes())["token"] == "another"


def test_a_lease_that_vanished_is_created_again(owner, tmp_path):
    (tmp_path / ".lease").unlink()
    owner.renewed -= 10 * SECONDS
    owner.check()
    assert parse((tmp_path / ".lease").read_bytes())["token"] == owner.me["token"]


def test_of_many_successors_one_gets_it(tmp_path):
    leave_behind(tmp_path, boot="another")
    leases = [Lease(tmp_path, SECONDS) for _ in range(8)]

    def acquire(lease):
        try:
            lease.acquire()
            return True
        except Taken:
            return False

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(acquire, leases))
    assert sum(results) == 1
    assert parse((tmp_path / ".lease").read_bytes())["token"] == leases[results.index(True)].me["token"]
    leases[results.index(True)].release()
    assert list(tmp_path.iterdir()) == []


def test_a_lease_changes_once_and_is_there_all_the_time(tmp_path):
    """Of eight that replace or remove the same one at the same moment; it had two owners when they did not lock it."""
    place, barrier = LocalFile(tmp_path / ".lease"), threading.Barrier(8)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number in range(40):
            old = f"{number} before".encode()
            place.path.write_bytes(old)

            def change(mine, old=old):
                barrier.wait()
                if mine == b"remove":
                    return place.remove(old)
                return place.replace(old, mine) or place.create(mine)

            mine = [b"remove" if number % 2 and not k else f"{number} {k}".encode() for k in range(8)]
            results = list(pool.map(change, mine))
            winners = [name for name, won in zip(mine, results, strict=True) if won]
            if b"remove" in winners:  # the first of the others may create it then
                winners.remove(b"remove")
            assert [place.read()] == (winners or [None])
            assert [path.name for path in tmp_path.iterdir()] == [".lease"] * len(winners)
            place.path.unlink(missing_ok=True)


@pytest.mark.parametrize("error", [OSError("no locks"), BlockingIOError()])
def test_a_lock_that_cannot_be_had(tmp_path, monkeypatch, error):
    """On a file system without locks; and while a process that is suspended has the lock."""

    def refuse(*_):
        raise error

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(module, "SUSPENDED", 0.4)
    place = LocalFile(tmp_path / ".lease")
    place.path.write_bytes(b"old")
    began = time.monotonic()
    assert not place.replace(b"another", b"new") and place.replace(b"old", b"new") and place.remove(b"new")
    assert time.monotonic() < began + 5 and list(tmp_path.iterdir()) == []


def test_one_that_was_suspended_in_its_lock_leaves_the_lease_alone(tmp_path, monkeypatch):
    place = LocalFile(tmp_path / ".lease")
    place.path.write_bytes(b"old")
    read = place.read
    monkeypatch.setattr(module, "SUSPENDED", 0.4)
    monkeypatch.setattr(place, "read", lambda: (time.sleep(0.5), read())[1])
    assert not place.replace(b"old", b"new") and [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
