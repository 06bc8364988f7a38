"""Checkpoints: which are kept, where they are restored to, and what is done about damaged ones."""

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from score_st import config, networks
from score_st.runtime import sharding
from score_st.runtime.workdir import write_text
from score_st.training import checkpoints, hashes, saved_steps, state
from score_st.training.optimizer import optimizer_from_config


def test_checkpoints_keep_the_newest_and_every_period(tmp_path):
    settings = config.default()
    optimizer = optimizer_from_config(settings, networks.from_config(settings))
    current = state.create({"w": jnp.arange(8.0)}, optimizer)
    abstract = jax.eval_shape(lambda: current)
    manager = checkpoints.manager(tmp_path, keep_period=4)
    assert checkpoints.restore(manager, abstract, sharding.mesh()) is None
    for _ in range(7):
        current = state.update(current, {"w": jnp.ones(8)}, optimizer, 0.9)
        checkpoints.save(manager, current)
    manager.wait_until_finished()
    assert manager.all_steps() == [4, 7]
    restored = checkpoints.restore(manager, abstract, sharding.mesh())
    chex.assert_trees_all_equal(restored, current)
    assert restored.params["w"].sharding.num_devices == 8
    manager.close()


@pytest.fixture
def run(tmp_path):
    """A workdir with checkpoints at 2, 4 and 6, their states, and a reader of the newest good one."""
    settings = config.default()
    optimizer = optimizer_from_config(settings, networks.from_config(settings))
    params = {"w": jnp.sin(jnp.arange(30_000.0)), "b": jnp.arange(8.0)}
    current = state.create(params, optimizer)
    abstract, states = jax.eval_shape(lambda: current), {}
    with checkpoints.manager(tmp_path, keep_period=2) as manager:
        for step in (2, 4, 6):
            params = jax.tree.map(lambda a: a + 1, current.params)
            current = states[step] = dataclasses.replace(current, step=jnp.int32(step), params=params)
            checkpoints.save(manager, current)
            manager.wait_until_finished()

    def newest():
        with checkpoints.manager(tmp_path, keep_period=2) as manager:
            return checkpoints.restore(manager, abstract, sharding.mesh())

    return tmp_path, states, newest


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_any_flipped_bit_is_noticed(run):
    """In the largest file, 20 times, but for its end, where Orbax leaves what nothing refers to any more."""
    workdir, states, newest = run
    path = largest(workdir / "checkpoints/6")
    content, draw = path.read_bytes(), np.random.default_rng(0)
    target = checkpoints.placed(jax.eval_shape(lambda: states[6]), sharding.mesh())
    for _ in range(20):
        bit, changed = int(draw.integers(int(0.95 * 8 * len(content)))), bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with checkpoints.manager(workdir, read_only=True) as manager, pytest.raises(checkpoints.Damaged) as error:
            checkpoints.read_item(manager, 6, target)
        assert str(error.value).startswith(f"{workdir}/checkpoints/6 is damaged (")
    path.write_bytes(content)
    chex.assert_trees_all_equal(newest(), states[6])


def cut(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:100])


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def without_data(folder):
    shutil.rmtree(folder / "default/d")


def with_garbage(folder):
    (folder / "default/manifest.ocdbt").write_bytes(b"\xff" * 50)
    (folder / "default/_METADATA").write_bytes(b"{")


@pytest.mark.parametrize("damage", [cut, empty, without_data, with_garbage])
def test_the_last_good_checkpoint_is_taken(run, damage, capfd):
    """One line names the one that is damaged; it is set aside, so that its step can be saved again."""
    workdir, states, newest = run
    damage(workdir / "checkpoints/6")
    chex.assert_trees_all_equal(newest(), states[4])
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and f"{workdir}/checkpoints/6 is " in said and "Traceback" not in said
    assert said.endswith("; it is now 6.damaged, and step 4 is taken\n")
    assert saved_steps.steps(workdir) == [2, 4] and (workdir / "checkpoints/6.damaged").is_dir()
    with checkpoints.manager(workdir, keep_period=2) as manager:
        checkpoints.save(manager, states[6])
    chex.assert_trees_all_equal(newest(), states[6])
    assert capfd.readouterr().err == ""


def test_if_no_checkpoint_is_good_nothing_is_touched(run):
    workdir, _, newest = run
    for step in (2, 4, 6):
        cut(workdir / f"checkpoints/{step}")
    with pytest.raises(checkpoints.Damaged, match=r"checkpoints/6 is damaged .*, and there is no other"):
        newest()
    assert saved_steps.steps(workdir) == [2, 4, 6]


def test_a_checkpoint_without_hashes_is_read_and_said_once(run, capsys):
    workdir, states, newest = run
    with checkpoints.manager(workdir, keep_period=2) as manager:
        old = dataclasses.replace(states[6], step=jnp.int32(8))
        manager.save(8, args=ocp.args.StandardSave(old))
    for _ in range(2):
        chex.assert_trees_all_equal(newest(), old)
    assert capsys.readouterr().err == f"note: {workdir}/checkpoints/8 has no checksums: an older version wrote it\n"


def test_a_part_is_read_and_checked_alone(run):
    """Damage in what is not read does not matter."""
    workdir, states, _ = run
    with checkpoints.manager(workdir, keep_period=2) as manager:
        wrong = dataclasses.replace(states[6], step=jnp.int32(8))
        parts = checkpoints.parts_of(wrong)
        good = {**parts, "hashes": hashes.of(parts), "params": jax.tree.map(lambda a: a + 1, wrong.params)}
        manager.save(8, args=ocp.args.PyTreeSave(good))
    target = checkpoints.placed(checkpoints.parts_of(jax.eval_shape(lambda: wrong)), sharding.mesh())
    with checkpoints.manager(workdir, read_only=True) as manager:
        read = checkpoints.read_item(manager, 8, {"ema": target["ema"]})
        chex.assert_trees_all_equal(read, {"ema": wrong.ema})
        with pytest.raises(checkpoints.Damaged, match="the checksum of params/b and 1 more differs"):
            checkpoints.read_item(manager, 8, target)


def test_snapshots_are_kept_when_the_period_changes(run):
    workdir, states, _ = run
    write = lambda period: write_text(workdir / "config.json", json.dumps({"training": {"snapshot_freq": period}}))
    write(2)
    saved_steps.keep_snapshots(workdir, 2)
    assert not (workdir / "kept.json").exists()
    for period, step in ((5, 7), (5, 8), (4, 9), (5, 11)):
        saved_steps.keep_snapshots(workdir, period)
        write(period)
        with checkpoints.manager(workdir, keep_period=period) as manager:
            checkpoints.save(manager, dataclasses.replace(states[6], step=jnp.int32(step)))
        assert saved_steps.steps(workdir) == [2, 4, 6] + [8] * (step > 8) + [step]
    (workdir / "kept.json").write_text("[2, 4,")
    with checkpoints.manager(workdir, keep_period=5) as manager:
        checkpoints.save(manager, dataclasses.replace(states[6], step=jnp.int32(13)))
    assert saved_steps.steps(workdir) == [2, 4, 6, 8, 11, 13]
