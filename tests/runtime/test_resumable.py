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
    """As they were written before this module existed, the last one cut off; the next job leaves a clean file."""
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
        lines[1] == line and json.loads(lines[2])["result"] == {"prior": [float(np.float32(0.1))]} and len(lines) == 3
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
