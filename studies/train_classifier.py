"""Trains the small classifiers whose features stand for the digits and for Fashion-MNIST at 16x16.

    python studies/train_classifier.py --data fashion-mnist --out score_st/evaluation/weights

Adam with a cosine decay, shifts by a pixel, averaged weights, float16 in the file. It prints the accuracy on the test
images. The name of the file has the first digits of its SHA-256; another file of the same data is replaced.
"""

import argparse
import hashlib
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_st.config import load
from score_st.data import pipeline
from score_st.data.labels import labels_of
from score_st.evaluation import classifier
from score_st.evaluation.sample_quality import to_bytes

CONFIGS = {
    "digits": ("vp/DIGITS/ddpmpp_nll_st_official", {}),
    "fashion-mnist": ("vp/FASHION_MNIST/ddpmpp_nll_st_official", {"data.image_size": "16"}),
}


def train(images: np.ndarray, targets: np.ndarray, size: int, steps: int, batch: int = 128) -> dict:
    """Returns averaged parameters."""
    network = classifier.Network(size=size)
    params = network.init(jax.random.key(0), images[:1])["params"]
    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-3)

    @jax.jit
    def step(params, opt_state, average, x, y, rate):
        def loss(params):
            logits = network.apply({"params": params}, x)["logits"]
            smooth = optax.smooth_labels(jax.nn.one_hot(y, classifier.CLASSES), 0.05)
            return jnp.mean(optax.softmax_cross_entropy(logits, smooth))

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, opt_state, jax.tree.map(lambda a, p: a + rate * (p - a), average, params)

    rng, average, opt_state = np.random.default_rng(0), params, optimizer.init(params)
    for i in range(steps):
        chosen = rng.integers(len(images), size=batch)
        shift = rng.integers(-1, 2, size=2)
        x = np.roll(images[chosen], shift, axis=(1, 2))
        params, opt_state, average = step(params, opt_state, average, x, targets[chosen], min(1.0, 20 / (i + 1)))
    return average


def main() -> None:
    """Writes the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=CONFIGS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    name, (base, settings) = arguments.data, CONFIGS[arguments.data]
    config = load(base, settings)
    loaded = {split: pipeline.load(config, split) for split in ("train", "test")}
    splits = {split: np.asarray(to_bytes(images, config.data.num_levels, split)) for split, images in loaded.items()}
    params = train(splits["train"], labels_of(loaded["train"]), classifier.SIZES[name], arguments.steps)
    arrays = {f"{layer}/{key}": np.asarray(a, np.float16) for layer, part in params.items() for key, a in part.items()}
    apply = jax.jit(classifier.Network(size=classifier.SIZES[name]).apply)
    logits = apply({"params": classifier.parameters(arrays)}, splits["test"])["logits"]
    accuracy = float(np.mean(np.argmax(logits, 1) == labels_of(loaded["test"])))
    np.savez_compressed(file := io.BytesIO(), **arrays)
    content = file.getvalue()
    path = arguments.out / f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if old := classifier.find_weights(name, arguments.out):
        old.unlink()
    path.write_bytes(content)
    print(f"{path}: {len(content)} bytes, accuracy {accuracy:.4f} on {len(splits['test'])} test images")


if __name__ == "__main__":
    main()
