"""Stored results: what is computed once, what is dropped, and files written before this module existed."""

import json

import numpy as np
import pytest

from score_st.runtime.resumable import JSON, NPZ, Chunks, JobFiles, JsonLines

STORES = {
    "lines": lambda folder: JsonLines(folder / "results.jsonl", {"step": 1}),
    "json": lambda folder: JobFiles(folder, "{}_{:03d}.json", JSON),
    "npz": lambda folder: JobFiles(folder, "{}_{:03d}.npz", NPZ),
}


@pytest.mark.parametrize("name", STORES)
def test_results_are_computed_once(name, tmp_path):
    """Also by the next process, where one failed before it had a result."""
    results, computed = STORES[name](tmp_path / "new"), []

    def compute():
        computed.append(1)
        return {"a": [1.5, 2.0], "n": 3}

    with pytest.raises(ZeroDivisionError):
        results(("x", 7), lambda: {"a": 1 / 0})
    for again in (False, False, True):
        results = STORES[name](tmp_path / "new") if again else results
        result = results(("x", 7), compute)
        assert list(result["a"]) == [1.5, 2.0] and result["n"] == 3
    assert len(computed) == 1 and ("x", 7) in results and ("x", 8) not in results
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_another_process_only_reads(tmp_path):
    reader = JsonLines(tmp_path / "a.jsonl", {}, writes=False), JobFiles(tmp_path, "{}.npz", NPZ, writes=False)
    for results in reader:
        assert results(("x",), lambda: {"a": 1})["a"] == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_too_short_is_replaced(tmp_path):
    results = JobFiles(tmp_path, "samples_{:07d}.npz", NPZ)
    for n, computed in ((2, 2), (1, 2), (4, 4)):
        result = results((6,), lambda n=n: {"nfe": np.arange(n)}, valid=lambda stored, n=n: len(stored["nfe"]) >= n)
        assert len(result["nfe"]) == computed
    assert [path.name for path in tmp_path.iterdir()] == ["samples_0000006.npz"]


def test_lines_of_before(tmp_path):
    """As they were written before this module existed, the last one cut off, which stays so."""
    path = tmp_path / "bpd.jsonl"
    line = '{"job": ["nll", 0, 6], "seconds": 0.1, "result": {"prior": [1.0, 2.5], "nfe": [8, 9], "reached": true}}\n'
    path.write_text('{"settings": {"step": 1}}\n' + line + line[:50])
    results = JsonLines(path, {"step": 1})
    stored = results(("nll", 0, 6), lambda: {})
    assert (
        stored["prior"].dtype == np.float64
        and stored["nfe"].tolist() == [8, 9]
        and results.seconds == {("nll", 0, 6): 0.1}
    )
    results(("nll", 0, 7), lambda: {"prior": np.float32([0.1])})
    lines = path.read_text().splitlines(keepends=True)
    assert (
        lines[1] == line and json.loads(lines[3])["result"] == {"prior": [float(np.float32(0.1))]} and len(lines) == 4
    )
    assert ("nll", 0, 6) not in JsonLines(path, {"step": 2})


def test_chunks(tmp_path):
    path, settings, start = (
        tmp_path / "copy.part.json",
        {"settings": {"a": (1, 2)}, "shape": [9]},
        {"done": 0, "crc": 0},
    )
    path.write_text(json.dumps({"settings": {"a": [1, 2]}, "shape": [9], "done": 4, "crc": 77}))
    results = Chunks(path, settings, start)
    assert results.state == {"done": 4, "crc": 77}
    order = []
    for first in range(0, 9, 2):
        results((first,), lambda first=first: order.append(first) or {"done": first + 2, "crc": 0})
    assert order == [4, 6, 8] and json.loads(path.read_text())["done"] == 10
    assert Chunks(path, settings, start).state["done"] == 10
    assert Chunks(path, settings | {"shape": [8]}, start).state == start
    path.write_text("{")
    assert Chunks(path, settings, start).state == start


def joined(line):
    return line[: len(line) // 2] + line


TEARS = {
    "cut": lambda line: line[:-9],
    "joined": joined,
    "binary": lambda line: b"\xff\xfe\x00" + line,
    "one digit": lambda line: line.replace(b"1.5", b"1.6"),
    "no object": lambda line: b"[1, 2]",
    "no result": lambda line: b'{"job": ["x", 1], "seconds": 0.1}',
    "text": lambda line: b'{"job": ["x", 1], "seconds": 0.1, "result": {"a": "none"}}',
    "ragged": lambda line: b'{"job": ["x", 1], "seconds": 0.1, "result": {"a": [[1], [1, 2]]}}',
    "deep": lambda line: b"[" * 100_000,
}


@pytest.mark.parametrize("name", TEARS)
def test_a_damaged_line_is_computed_again(name, tmp_path):
    """And only that: the lines before and after it count."""
    path, computed = tmp_path / "a.jsonl", []

    def compute(n):
        computed.append(n)
        return {"a": [1.5, n]}

    for again in range(3):
        if again == 1:
            lines = path.read_bytes().split(b"\n")
            lines[2] = TEARS[name](lines[2])
            path.write_bytes(b"\n".join(lines))
        results = JsonLines(path, {})
        found = [results(("x", n), lambda n=n: compute(n))["a"].tolist() for n in range(3)]
        assert found == [[1.5, n] for n in range(3)]
    assert computed == [0, 1, 2, 1]


def test_results_of_another_shape_are_computed_again(tmp_path):
    results = JsonLines(tmp_path / "a.jsonl", {})
    for size in (3, 2, 2):
        fits = lambda result, size=size: len(result["a"]) == size
        assert len(results(("x",), lambda size=size: {"a": np.zeros(size)}, fits)["a"]) == size
        results = JsonLines(tmp_path / "a.jsonl", {})
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 3


def test_two_processes_add_to_one_file(tmp_path):
    """Neither loses a line, be their settings the same or not; and none is taken for one of other settings."""
    path = tmp_path / "a.jsonl"
    settings = ({"step": 1}, {"step": 1}, {"step": 2})
    writers = [JsonLines(path, each) for each in settings]
    for n in range(4):
        for which, writer in enumerate(writers):
            writer(("x", which, n), lambda n=n, which=which: {"a": [n, which]})
    for which, each in enumerate(settings):
        stored = JsonLines(path, each)
        assert [stored(("x", which, n), dict)["a"].tolist() for n in range(4)] == [[n, which] for n in range(4)]
        assert (("x", 0, 0) in stored, ("x", 1, 0) in stored) == (each["step"] == 1,) * 2


@pytest.mark.parametrize("content", [b"", b"\xff\xff", b"{", b"PK\x03\x04", b"[" * 100_000])
@pytest.mark.parametrize("format", [JSON, NPZ])
def test_a_damaged_file_is_computed_again(content, format, tmp_path):
    results = JobFiles(tmp_path, "{}.file", format)
    results(("x",), lambda: {"a": np.arange(3).tolist()})
    whole = results.path(("x",)).read_bytes()
    for damaged in (content, whole[: len(whole) // 2], whole[:-1]):
        results.path(("x",)).write_bytes(damaged)
        assert list(results(("x",), lambda: {"a": [0, 1, 2]})["a"]) == [0, 1, 2]
        assert results.path(("x",)).read_bytes() == whole


STATES = ['{"done": -1, "crc": 0}', '{"done": 1.5, "crc": 0}', '{"done": 1e999, "crc": 0}', '{"done": true, "crc": 0}']


@pytest.mark.parametrize(
    "content", ["[]", '{"done": "x", "crc": 0}', '{"done": null, "crc": 0}', "[" * 100_000, *STATES]
)
def test_damaged_chunks_begin_again(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    assert Chunks(tmp_path / "a.json", {}, {"done": 0, "crc": 0}).state == {"done": 0, "crc": 0}
