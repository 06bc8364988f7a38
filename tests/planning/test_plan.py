"""Plans: what is read from compiled programs, the roofline, and the way to settings that fit."""

import dataclasses
import importlib.util
import json
import types

import jax
import jax.numpy as jnp
import pytest
from support.commands import DIGITS, refused

from score_st import plan
from score_st.planning import compile as planner
from score_st.planning import hlo, tpu

# two loops deep, with one collective of each way of writing groups, one of them in a fusion
PROGRAM = """\
HloModule jit_step

%fused (p.0: f32[16,128]) -> f32[4,128] {
  %p.0 = f32[16,128]{1,0:T(8,128)} parameter(0)
  ROOT %rs.1 = f32[4,128]{1,0:T(8,128)} reduce-scatter(%p.0), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
}

%body (p.1: f32[16,128]) -> f32[16,128] {
  %p.1 = f32[16,128]{1,0:T(8,128)} parameter(0)
  %part = f32[4,128]{1,0:T(8,128)} fusion(%p.1), kind=kCustom, calls=%fused
  ROOT %whole = f32[16,128]{1,0:T(8,128)} all-gather(%part), replica_groups=[2,4]<=[8], dimensions={0}
}

%condition (p.2: f32[16,128]) -> pred[] {
  ROOT %p.3 = pred[]{:T(512)} constant(true)
}

ENTRY %main (x: f32[16,128], y: bf16[3,100]) -> f32[16,128] {
  %x = f32[16,128]{1,0:T(8,128)} parameter(0)
  %y = bf16[3,100]{1,0:T(8,128)(2,1)} parameter(1), metadata={op_name="y"}
  %copy-start = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %copy-done = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %sum = (f32[16,128]{1,0:T(8,128)S(1)}, f32[7]{0:T(128)S(1)}) all-reduce(%copy-done, %copy-done), \
replica_groups=mesh['a'=4,'b'=2] {'a','b'}, to_apply=%condition, metadata={op_name="jit(step)/transpose(jvp(N))/psum"}
  %one = f32[16,128]{1,0:T(8,128)S(1)} get-tuple-element(%sum), index=0
  %slice-start = ((f32[16,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x)
  %slice-done = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %narrow = f32[3,100]{1,0:T(8,128)} convert(%y), metadata={op_name="jit(step)/jvp(N)/all_modules_3/convert"}
  ROOT %loop = f32[16,128]{1,0:T(8,128)} while(%x), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""


def test_collectives():
    found = {c.kind: c for c in hlo.Program(PROGRAM).collectives()}
    assert found == {
        "all-reduce": hlo.Collective("all-reduce", "f32", 2 * 16 * 128 * 4, 8, 1),
        "all-gather": hlo.Collective("all-gather", "f32", 16 * 128 * 4, 4, 5),
        "reduce-scatter": hlo.Collective("reduce-scatter", "f32", 16 * 128 * 4, 4, 5),
    }


def test_traffic():
    """Vector memory is none, a copy reads as much as it writes, tiles count in full, loops as often as they run."""
    whole = 16 * 128 * 4
    found = hlo.Program(PROGRAM).traffic()
    # into vector memory whole and half; five times a fusion that leaves a part, half a tile, and gathering it
    assert found.pop("arguments") == whole + whole // 2 + 5 * 2 * (whole + whole // 2)
    assert found.pop("jit(step)/jvp(N)/all_modules_3/convert") == 8 * 128 * (2 + 4)
    assert sum(found.values()) == 0


def test_roofline():
    where = tpu.topology("v5e:4x4")
    made = {"flops": 197e12, "bytes": 0.819e12 / 2, "collectives": []}
    made["collectives"] = [{"kind": "all-reduce", "bytes": 9e9, "group": 16, "times": 2}]
    found = tpu.estimate(where, {"forward": 197e12 / 4, "passes": 1}, made)
    links = 2 * 2 * 15 / 16 * 9e9 / (2 * 4.5e10)
    assert found["step"] == pytest.approx(1 + links) and found["memory"] == pytest.approx(0.5)
    assert found["bound"] == "arithmetic" and found["mfu"] == pytest.approx(0.75 / (1 + links))
    assert tpu.topology("v5e:16x16").links == 4 and tpu.topology("v4:2x2x2").links == 3


@dataclasses.dataclass
class Fake:
    """In place of a lowered program: too large for the micro-batches of its configuration."""

    text: str
    needed: float

    def as_text(self):
        return self.text

    def compile(self):
        if self.needed > 15.75:
            raise jax.errors.JaxRuntimeError(
                f"RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
                f"Used {self.needed:.2f}G of 15.75G hbm. Exceeded hbm capacity by 1.00G."
            )
        sizes = {f"{name}_size_in_bytes": 2**30 for name in ("argument", "output", "temp", "generated_code", "alias")}
        return types.SimpleNamespace(
            memory_analysis=lambda: types.SimpleNamespace(**sizes),
            cost_analysis=lambda: {"flops": 1e12, "bytes accessed": 2e9},
            as_text=lambda: PROGRAM,
        )


@pytest.fixture
def compiled(monkeypatch):
    """The programs that are compiled; they need 160 GiB beside a state of 2, in float32 and without micro-batches."""
    found = []

    def job(config, devices):
        micro = config.optim.num_micro_batch
        half = 2 ** -((config.training.dtype == "bfloat16") + (config.training.remat == "blocks"))
        fake = Fake(f"{config.model.nf} {micro}", 2 + 160 * half / micro)
        return planner.Job(fake, 2 * 2**30, 8, 1e11, micro)

    def compile(job):
        found.append(job.lowered.text)
        return real(job)

    real = planner.compile
    monkeypatch.setattr(plan, "compile", compile)
    monkeypatch.setattr(plan, "versions", lambda: {})
    monkeypatch.setitem(planner.JOBS, "train", job)
    monkeypatch.setattr(tpu.Topology, "devices", lambda self: [])
    return found


def test_search_and_cache(compiled, tmp_path, capsys):
    command = [
        "--config",
        DIGITS,
        "--topology",
        "v5e:2x2",
        "--cache",
        str(tmp_path),
        "--config.training.batch_size=32",
    ]
    command += ["--config.training.dtype=bfloat16", "--config.training.remat=blocks", "--config.model.nf=8"]
    plan.main(command)
    shown = capsys.readouterr().out
    assert "does not fit: needs 42.00 of 15.75 GiB" in shown
    assert "12.00 GiB: --config.optim.num_micro_batch=4\n" in shown
    first = list(compiled)
    table, out = tmp_path / "plans.md", tmp_path / "plans.json"
    plan.main([*command, "--search", "--table", str(table), "--out", str(out)])
    assert len(compiled) == len(set(compiled)) == 2 and compiled[:1] == first
    result = json.loads(out.read_text())[-1]
    assert result["fits"] and result["overrides"]["optim.num_micro_batch"] == "4"
    assert result["hbm"] == 3 * 2**30 and result["flops"] == 4e12
    assert "optim.num_micro_batch=4" in table.read_text().splitlines()[-1]
    plan.main([*command, "--search"])
    assert len(compiled) == 2


def test_bad_requests(capsys, monkeypatch):
    error = refused(capsys, plan.main, ["--config", DIGITS, "--topology", "v5e:3x5"])
    assert "--topology v5e:3x5: unknown; choose from v4:2x2x1" in error and "v5e:4x4" in error
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = refused(capsys, plan.main, ["--config", DIGITS, "--topology", "v5e:2x2"])
    assert "pip install -e '.[plan]'" in error


LIBTPU = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu: pip install -e '.[plan]'")


@LIBTPU
def test_what_does_not_fit():
    """The compiler itself says so: a sum over 40 GiB on a chip of 16."""
    one = jax.sharding.SingleDeviceSharding(tpu.topology("v5e:2x2").devices()[0])
    images = jax.ShapeDtypeStruct((40, 2**18, 1024), jnp.float32, sharding=one)
    found = planner.compile(planner.Job(jax.jit(jnp.sum).lower(images), 0, 1, 1.0))
    assert not found["fits"]
    assert (found["hbm"], found["hbm_limit"]) == (40 * 2**30, 15.75 * 2**30)


@LIBTPU
def test_data_parallel_program(tmp_path):
    """One sum of all gradients, in float32; nothing else is communicated but metrics."""
    small = {"model.nf": "8", "model.ch_mult": "(1,)", "training.dtype": "bfloat16", "training.batch_size": "8"}
    found = planner.plan(DIGITS, small, tpu.topology("v5e:2x2"), "train", tmp_path)
    params = found["state"] // 4 // 4
    (gradients, *rest) = found["collectives"]
    assert (gradients["kind"], gradients["types"], gradients["group"]) == ("all-reduce", "f32", 4)
    assert 4 * params <= gradients["bytes"] <= 4 * params + 64
    assert sum(c["bytes"] for c in rest) < 128
    assert found["fits"] and found["hbm"] < 2**30
    assert found["flops"] == pytest.approx(3 * found["forward"], rel=0.2)
