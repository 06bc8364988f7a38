"""Plans by the TPU's compiler itself; `tests/test_plan.py` has the search, with programs that are not compiled."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from support.commands import DIGITS

from score_st.planning import planner, tpu

LIBTPU = pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu: pip install -e '.[plan]'")


@LIBTPU
def test_what_does_not_fit():
    """The compiler itself says so: a sum over 40 GiB on a chip of 16."""
    one = jax.sharding.SingleDeviceSharding(tpu.topology("v5e:2x2").devices()[0])
    images = jax.ShapeDtypeStruct((40, 2**18, 1024), jnp.float32, sharding=one)
    analysis = planner.compile_job(planner.Job(jax.jit(jnp.sum).lower(images), 0, 1, 1.0))
    assert not analysis["fits"]
    assert (analysis["hbm"], analysis["hbm_limit"]) == (40 * 2**30, 15.75 * 2**30)


@LIBTPU
def test_data_parallel_program(tmp_path):
    """One sum of all gradients, in float32; nothing else is communicated but metrics."""
    small = {"model.nf": "8", "model.ch_mult": "(1,)", "training.dtype": "bfloat16", "training.batch_size": "8"}
    plan = planner.Planner(tpu.topology("v5e:2x2"), cache=tmp_path).plan(DIGITS, small)
    params = plan["state"] // 4 // 4
    (gradients, *rest) = plan["collectives"]
    assert (gradients["kind"], gradients["types"], gradients["group"]) == ("all-reduce", "f32", 4)
    assert 4 * params <= gradients["bytes"] <= 4 * params + 64
    assert sum(collective["bytes"] for collective in rest) < 128
    assert plan["fits"] and plan["hbm"] < 2**30
    assert plan["flops"] == pytest.approx(3 * plan["forward"], rel=0.2)


@LIBTPU
@pytest.mark.slow
@pytest.mark.parametrize("program", ["eval", "sample"])
def test_other_programs(tmp_path, program):
    small = {"model.nf": "8", "model.ch_mult": "(1,)", "eval.group": "4", "eval.batch_size": "32"}
    small |= {"sampling.group": "4"}
    plan = planner.Planner(tpu.topology("v5e:2x2"), program, tmp_path).plan(DIGITS, small)
    assert plan["fits"] and plan["images"] == 4 and plan["state"] > 0
