"""How much the gradient of a training step spreads, with and without stratified times.

    python tests/gradient_variance.py --workdir W --step 500

At the raw weights of a checkpoint: the trace of the covariance over draws of a step (its batch, τ, times and noise),
before clipping, and the squared norm of the mean gradient. Both are unbiased.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

from score_st import config as configuration
from score_st.data import pipeline
from score_st.runtime import sharding
from score_st.training import checkpoints, loop
from score_st.training import step as stepping


def moments(config, params, draws: int) -> dict[str, float]:
    """Trace of the covariance of the gradient, and the squared norm of its mean."""
    setup = stepping.from_config(config, sharding.mesh())
    stream = loop.stream(config, pipeline.load(config, "train"))

    @jax.jit
    def gradient(params, images, key):
        data_key, dropout_key = jax.random.split(key)
        inputs = stepping.draw(setup, images, data_key)
        tree = stepping.on_devices(stepping.gradient_of_share, setup, 2)(params, inputs, dropout_key)[1]
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])

    total, squares = 0.0, 0.0
    for i in range(draws):
        one = np.asarray(gradient(params, stream.batch(i), jax.random.fold_in(jax.random.key(1), i)), np.float64)
        total, squares = total + one, squares + one @ one
    of_mean = total @ total / draws**2
    variance = (squares / draws - of_mean) * draws / (draws - 1)
    return {"variance": variance, "norm2_of_mean": of_mean - variance / draws}


def main() -> None:
    """Prints a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--step", type=int)
    parser.add_argument("--draws", type=int, default=200)
    arguments, result = parser.parse_args(), {}
    for stratified in (False, True):
        config = configuration.from_workdir(arguments.workdir, {"training.stratified": stratified})
        setup = stepping.from_config(config, sharding.mesh())
        state = checkpoints.open_for_reading(arguments.workdir, config, setup.model, setup.mesh, arguments.step)
        result["stratified" if stratified else "independent"] = moments(config, state.params, arguments.draws)
    print(json.dumps({"step": int(state.step), "draws": arguments.draws} | result, indent=1))


if __name__ == "__main__":
    main()
