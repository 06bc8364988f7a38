"""Small classifiers of the labels of the digits and of Fashion-MNIST, whose last layer gives features of such images.

An Inception network has seen no such images, and takes seconds for a hundred of them. These take milliseconds, and
their 64 features have a covariance of full rank for a few hundred images. `studies/train_classifier.py` trains them.
"""

import functools
from pathlib import Path

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from score_st.array_types import Array, Float, Shaped
from score_st.config import ConfigError
from score_st.evaluation.inception import resize
from score_st.runtime import numpy_files

DIMENSION, CLASSES = 64, 10
HINT = "it comes with score_st; install it again"
RESIZING = "clean"
SIZES = {"digits": 8, "fashion-mnist": 16}  # side of the images that each was trained on
WEIGHTS = Path(__file__).with_name("weights")


class Network(nn.Module):
    """Two convolutions and a hidden layer, whose 64 activations are the features.

    Attributes:
      resizing: one of `inception.RESIZINGS`, for images of another size.
      size: side of the images that it was trained on.
    """

    resizing: str = RESIZING
    size: int = 16

    @nn.compact
    def __call__(self, images: Shaped[Array, "B H W C"]) -> dict[str, Float[Array, "B _"]]:
        """Returns `features` [B, 64] and `logits` [B, 10] of uint8 images; of three channels it sees the mean."""
        if images.shape[1:3] != (self.size, self.size):
            images = resize(images, self.resizing, self.size)
        x = jnp.mean(images.astype(jnp.float32), axis=3, keepdims=True) / 127.5 - 1.0
        x = nn.relu(nn.Conv(24, (4, 4), strides=2)(x))
        x = nn.relu(nn.Conv(48, (3, 3), strides=2)(x))
        features = nn.relu(nn.Dense(DIMENSION)(x.reshape(len(x), -1)))
        return {"features": features, "logits": nn.Dense(CLASSES)(features)}


def find_weights(name: str, folder: Path = WEIGHTS) -> Path | None:
    """Returns the file of weights of an entry of `SIZES`, which is in the package; None if it is missing."""
    return next(folder.glob(f"{name}-????????.npz"), None)


def file(name: str) -> str:
    """Returns the name of this file, which ends in the first digits of its SHA-256."""
    path = find_weights(name)
    return path.name if path else f"{name}-????????.npz"


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an npz by "layer/parameter".

    Raises:
      ConfigError: it can't be read.
    """
    try:
        return numpy_files.read_npz(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: can't be read as an npz ({error}); {HINT}") from error


def parameters(arrays: dict[str, np.ndarray]) -> dict:
    """Returns the parameters of `Network` from arrays of any float type by "layer/parameter"."""
    params: dict[str, dict] = {}
    for key, array in arrays.items():
        layer, _, name = key.partition("/")
        params.setdefault(layer, {})[name] = array.astype(np.float32)
    return params


def network(name: str) -> functools.partial:
    """Returns the function from a way to resize to the `Network` of an entry of `SIZES`."""
    return functools.partial(Network, size=SIZES[name])
