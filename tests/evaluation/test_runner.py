"""Evaluations that are killed and resumed, and what is never taken from a file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_st.evaluation import provenance, runner

IMAGES = np.random.default_rng(0).integers(0, 17, (50, 2, 2, 1)).astype(np.uint8)


class Killed(Exception):
    pass


def figure(params, images, indices, key):
    """Depends on the weights, the image, its place and the repeat."""
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(indices)
    return {"prior": params["w"] * jnp.mean(images, axis=(1, 2, 3)) + noise, "nfe": indices}


def evaluate(mesh, path, settings, computed, stop=None):
    """Three repeats over all images; `computed` counts batches, and `stop` is how many this run computes."""
    run = runner.ImageRunner({"w": jnp.float32(0.3)}, IMAGES, 8, 0, runner.open_results(path, settings), mesh)
    compiled = jax.jit(figure)

    def counted(*arguments):
        if stop is not None and len(computed) >= stop:
            raise Killed
        computed.append(1)
        return compiled(*arguments)

    return [run("nll", counted, repeat=r) for r in range(3)]


def same(a, b):
    return all(np.array_equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in ("prior", "nfe"))


def test_killed_five_times_and_torn(tmp_path, one_device):
    uninterrupted = evaluate(one_device, tmp_path / "uninterrupted.jsonl", {"step": 1}, [])
    path, computed = tmp_path / "eval" / "bpd.jsonl", []
    for stop in np.cumsum(np.random.default_rng(1).integers(1, 5, 5)):
        with pytest.raises(Killed):
            evaluate(one_device, path, {"step": 1}, computed, int(stop))
        with path.open("a") as file:  # the line that was being written
            file.write('{"job": ["nll", 0, 6], "seconds": 0.1, "result": {"prior": [1.0, 2')
    assert same(evaluate(one_device, path, {"step": 1}, computed), uninterrupted)
    assert len(computed) == 21  # 7 batches, 3 repeats: none twice
    evaluate(one_device, path, {"step": 1}, computed)
    assert len(computed) == 21
    lines = [line for line in path.open() if not line.endswith("[1.0, 2\n")]
    assert [len(json.loads(line)) for line in lines] == [1] + [4] * 21


def test_lines_of_other_settings_are_not_mixed_in(tmp_path, one_device):
    path, computed = tmp_path / "bpd.jsonl", []
    evaluate(one_device, path, {"step": 1}, computed)
    evaluate(one_device, path, {"step": 2}, computed)
    assert len(computed) == 42
    for step in (1, 2):
        evaluate(one_device, path, {"step": step}, computed)
    assert len(computed) == 42
    path.write_text("no json\n")
    evaluate(one_device, path, {"step": 2}, computed)
    assert len(computed) == 63


def test_checksum_and_provenance():
    tree = {"a": np.zeros(3, np.float32), "b": [np.ones(2, np.float32)]}
    other = {"a": np.zeros(3, np.float32), "b": [np.float32([1, 1.0000001])]}
    assert (
        provenance.checksum(tree) == provenance.checksum(jax.tree.map(jnp.asarray, tree)) != provenance.checksum(other)
    )
    software = provenance.software()
    assert software["versions"]["jax"] == jax.__version__
    assert software["git_revision"] is None or len(software["git_revision"].removesuffix("-dirty")) == 40
