"""Traces: which steps and batches they have, where they lie, and what takes longest in them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_st.runtime import profiling


def test_steps_are_parsed():
    assert profiling.parse_steps("") is None
    assert profiling.parse_steps("100-110") == (100, 110) and profiling.parse_steps("7-7") == (7, 7)


def event(name: int, start: int, duration: int, **stats: str) -> str:
    """An event in picoseconds; its stats are numbered as in `plane`."""
    values = "".join(f' stats {{ metadata_id: {key[1:]} str_value: "{value}" }}' for key, value in stats.items())
    return f"events {{ metadata_id: {name} offset_ps: {start} duration_ps: {duration}{values} }}"


def plane(name: str, lines: dict[str, list[str]], names: list[str]) -> str:
    """A plane of a trace, in which stat 1 is hlo_op and stat 2 hlo_module."""
    body = "".join(f'lines {{ id: {i} name: "{line}" {" ".join(lines[line])} }}' for i, line in enumerate(lines))
    body += "".join(f' event_metadata {{ key: {i} value {{ id: {i} name: "{n}" }} }}' for i, n in enumerate(names, 1))
    for i, stat in ((1, "hlo_op"), (2, "hlo_module")):
        body += f' stat_metadata {{ key: {i} value {{ id: {i} name: "{stat}" }} }}'
    return f'planes {{ name: "{name}" {body} }}'


def read(*planes: str, count: int = 10):
    return profiling.longest(jax.profiler.ProfileData.from_text_proto(" ".join(planes)), count)


MS = 10**9  # picoseconds
HOST = plane("/host:CPU", {"python": [event(1, 0, 900 * MS, _1="host_op")]}, ["host_op"])


def test_operations_of_a_tpu():
    """Those of the line of operations alone. A loop of 10 ms has two rounds of a fusion of 4 ms inside."""
    names = [
        "%while.1 = (f32[8]{0}) while(%tuple)",
        "%fusion.2 = f32[8]{0} fusion(%p)",
        "%copy.3 = f32[8]{0} copy(%p)",
    ]
    operations = [event(1, 0, 10 * MS), event(2, MS, 4 * MS), event(2, 5 * MS, 4 * MS), event(3, 10 * MS, 5 * MS)]
    lines = {"XLA Modules": [event(4, 0, 15 * MS)], "XLA Ops": operations, "Steps": [event(5, 0, 15 * MS)]}
    result = read(HOST, plane("/device:TPU:0", lines, [*names, "jit_step", "0"]))
    assert result["ms"] == pytest.approx(15)
    expected = [("fusion.2", 2, 8.0), ("copy.3", 1, 5.0), ("while.1", 1, 2.0)]
    assert [(row["name"], row["calls"], row["ms"]) for row in result["operations"]] == expected
    assert [row["share"] for row in result["operations"]] == pytest.approx([8 / 15, 5 / 15, 2 / 15])


def test_operations_of_two_gpus():
    """Kernels of all streams, by the operation that they belong to; copies that belong to none, by their own name."""
    kernel = lambda name, start, duration, op: event(name, start, duration, _1=op, _2="jit_step")
    streams = {
        "Stream #13(Compute)": [kernel(1, 0, 3 * MS, "conv.1"), kernel(2, 3 * MS, MS, "conv.1")],
        "Stream #14(MemcpyD2H)": [event(3, 0, 2 * MS)],
        "XLA Modules": [event(4, 0, 50 * MS)],
    }
    names = ["sm90_xmma_fprop", "splitKreduce", "MemcpyD2H", "jit_step"]
    result = read(HOST, *(plane(f"/device:GPU:{i}", streams, names) for i in range(2)))
    rows = [tuple(row.values()) for row in result["operations"]]
    assert rows == [("conv.1", "jit_step", 4, 8.0, 8 / 12), ("MemcpyD2H", "", 2, 4.0, 4 / 12)]


def test_operations_of_a_cpu():
    """Only what XLA's threads run; of three the longest two."""
    op = lambda name, start, duration: event(name, start, duration, _1=f"op.{name}", _2="jit_step")
    lines = {"tf_XLAEigen/1": [op(1, 0, MS), op(2, MS, 4 * MS)], "tf_XLAEigen/2": [op(3, 0, 3 * MS)]}
    lines["python"] = [event(4, 0, 99 * MS)]
    result = read(plane("/host:CPU", lines, ["op.1", "op.2", "op.3", "PjitFunction"]), count=2)
    assert [(row["name"], row["ms"]) for row in result["operations"]] == [("op.2", 4.0), ("op.3", 3.0)]
    assert result["ms"] == 8 and [row["share"] for row in result["operations"]] == [4 / 8, 3 / 8]


def test_a_trace_without_operations():
    assert read(plane("/host:CPU", {"python": [event(1, 0, MS)]}, ["f"])) == {"ms": 0.0, "operations": []}


@jax.jit
def doubled(x):
    return jnp.sort(x * 2)  # a sort is an operation of its own


def calls(entry: dict) -> int:
    """How often `doubled` was called in a trace."""
    return next(row["calls"] for row in entry["operations"] if row["name"].startswith("sort"))


def steps(current, batches, key):
    """A program of several steps, one call each."""
    for _ in batches:
        current = doubled(current)
    return current, current


@pytest.mark.parametrize(
    "start, sizes, expected",
    [
        (0, [1, 1, 1, 1, 1, 1, 1], 3),  # steps 3, 4, 5
        (0, [2, 2, 2, 1], 4),  # the programs of the steps 3, 4 and 5, 6
        (3, [1, 1, 1, 1], 2),  # it resumes after step 3
        (0, [1, 1, 1, 1], 2),  # it ends at step 4
    ],
)
def test_the_trace_has_its_steps(tmp_path, capsys, start, sizes, expected):
    current = doubled(jnp.arange(1000.0))
    function = profiling.traced(steps, tmp_path, "3-5", start, start + sum(sizes))
    for size in sizes:
        current, _ = function(current, [None] * size, None)
    np.testing.assert_allclose(current, jnp.arange(1000.0) * 2 ** (1 + sum(sizes)))
    entry = json.loads((tmp_path / "profile/operations.json").read_text())["steps_3-5"]
    assert calls(entry) == expected and entry["about"] == "steps 3 to 5 of training"
    assert 0 < sum(row["ms"] for row in entry["operations"]) <= entry["ms"] * (1 + 1e-9)
    files = [path for path in (tmp_path / "profile/plugins/profile/steps_3-5").iterdir()]
    assert sorted(path.name.partition(".")[2] for path in files) == ["trace.json.gz", "xplane.pb"]
    assert not list(tmp_path.glob("profile/.*")) and capsys.readouterr().err == ""


def test_steps_that_are_done_are_not_traced(tmp_path):
    assert profiling.traced(steps, tmp_path, "3-5", 5, 9) is steps
    assert profiling.traced(steps, tmp_path, "", 0, 9) is steps


def test_a_profiler_that_fails_is_said(tmp_path, capsys):
    (tmp_path / "profile").write_text("a file")
    current, function = doubled(jnp.arange(3.0)), profiling.traced(steps, tmp_path, "2-2", 0, 3)
    for _ in range(3):
        current, _ = function(current, [None], None)
    np.testing.assert_array_equal(current, [0, 16, 32])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no trace of steps 2 to 2 of training: FileExistsError: ")


def test_a_second_trace_at_a_time_is_said(tmp_path, capsys):
    first, second = (profiling.Trace(tmp_path, name, name) for name in ("first", "second"))
    first.start()
    second.start()
    doubled(jnp.ones(9)).block_until_ready()
    second.stop()
    first.stop()
    assert list(json.loads((tmp_path / "profile/operations.json").read_text())) == ["first"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no trace of second: ") and "Only one profile may be run at a time" in line


@pytest.mark.parametrize("batches, expected", [([4], 2), ([4, 1], 2), ([1, 4], 1), ([0, 3, 3], 2)])
def test_one_batch_is_traced(tmp_path, batches, expected):
    """The second of the first program that has batches left, or its only one; batch i has i calls."""
    trace = profiling.BatchTrace(tmp_path, "eval")
    for count in batches:
        trace.expect(count)
        for i in range(1, count + 1):
            with trace.batch():
                steps(jnp.ones(9), [None] * i, None)[0].block_until_ready()
    assert calls(json.loads((tmp_path / "profile/operations.json").read_text())["eval"]) == expected


def test_no_batch_to_trace_is_said(tmp_path, capsys):
    trace = profiling.BatchTrace(tmp_path, "eval")
    trace.expect(0)
    trace.finish()
    assert capsys.readouterr().err == "note: --profile: no trace, as all results were there already\n"
