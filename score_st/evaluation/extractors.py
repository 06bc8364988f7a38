"""The networks whose features stand for images, and where their weights are."""

import argparse
import dataclasses
import functools
import hashlib
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from score_st.array_types import UInt8
from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.data.images import Stack
from score_st.evaluation import classifier, efficientnet, inception, provenance
from score_st.evaluation.distances import Moments
from score_st.pytorch import file as torch_file
from score_st.runtime import progress, sharding

Apply = Callable[[UInt8[np.ndarray, "B H W C"]], dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network of features and its weights.

    Attributes:
      name: as --features has it.
      network: from the name of a way to resize to a Flax module, uint8 images [B, H, W, 1 or 3] ->
        {"features": [B, D]}, and "logits" [B, K] for the Inception score.
      parameters: from what `read` returns to the module's parameters.
      find: returns the path of the installed weights, or None.
      file: their name, which ends in the first digits of their SHA-256.
      hint: how to get them.
      resizing: the default.
      dimension: D.
      classifies: whether there are logits.
      variables: of a network that brings them, instead of a file.
      read: returns the tensors of a file of weights, by default of PyTorch's.
    """

    name: str
    network: Callable[[str], Any]
    parameters: Callable[[dict], dict]
    find: Callable[[], Path | str | None]
    file: str
    hint: str
    resizing: str
    dimension: int
    classifies: bool = False
    variables: Any = None
    read: Callable[[Path | str], dict] = torch_file.read

    def figure(self, name: str) -> str:
        """Returns the name of a figure, which says of which features it is unless they are Inception's."""
        others = {"fid": "FD", "kid": "KID"}
        return name if self.name == "inception" else f"{others.get(name, name)}-{self.name}"

    def weights(self, path: str | None) -> tuple[dict, str]:
        """Returns the network's parameters and the SHA-256 of their file, of `path` or the installed one.

        Raises:
          ConfigError: there is no file, or it is another one.
        """
        if self.variables is not None:
            if path:
                raise ConfigError(f"--weights {path}: {self.name} brings its own; leave --weights out")
            return self.variables, f"crc32 {provenance.checksum(self.variables):08x}"
        file = path or self.find()
        if not file:
            raise ConfigError(f"no weights {self.file}: {self.hint}")
        tensors, digest = self.read(file), hashlib.sha256(Path(file).read_bytes()).hexdigest()
        if not digest.startswith(self.file[-12:-4]):
            raise ConfigError(f"{file}: its SHA-256 is {digest[:8]}…, so it is not {self.file}: {self.hint}")
        return self.parameters(tensors), digest


def _classifier(name: str) -> Extractor:
    return Extractor(
        name,
        classifier.network(name),
        classifier.parameters,
        functools.partial(classifier.find_weights, name),
        classifier.file(name),
        classifier.HINT,
        classifier.RESIZING,
        classifier.DIMENSION,
        classifies=True,
        read=classifier.read_weights,
    )


EXTRACTORS = {
    "inception": Extractor(
        "inception",
        inception.Network,
        inception.from_torch,
        inception.find_weights,
        inception.FILE,
        inception.HINT,
        inception.RESIZING,
        inception.DIMENSION,
        classifies=True,
    ),
    "efficientnet-lite0": Extractor(
        "efficientnet-lite0",
        efficientnet.Network,
        efficientnet.from_torch,
        efficientnet.find_weights,
        efficientnet.FILE,
        efficientnet.HINT,
        efficientnet.RESIZING,
        efficientnet.DIMENSION,
    ),
    **{name: _classifier(name) for name in classifier.SIZES},
}


def known_name(text: str) -> str:
    """The type, for argparse, of --features."""
    if text not in EXTRACTORS and not (text.count(":") == 1 and all(text.split(":"))):
        choices = ", ".join(map(repr, EXTRACTORS))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {choices}, or module:function)")
    return text


@dataclasses.dataclass(frozen=True)
class _Own:
    """A Flax module of the user's as ours: features alone become {"features": …}."""

    module: nn.Module

    def apply(self, variables: dict, images: Any) -> dict[str, Any]:
        """Returns the outputs for uint8 images [B, H, W, 1 or 3]."""
        outputs = self.module.apply(variables["params"], images)
        return outputs if isinstance(outputs, dict) else {"features": outputs}


def choose(text: str, image_shape: tuple[int, int, int]) -> Extractor:
    """Returns the extractor that --features names.

    Args:
      text: a key of EXTRACTORS, or module:function. The function, called without arguments, returns a Flax module and
        its variables; the module takes uint8 images [B, H, W, C] and returns their features [B, D], or a dictionary
        with `features`, and `logits` [B, K] for the Inception score. It resizes and scales them itself.
      image_shape: (H, W, C) of the images.

    Raises:
      ConfigError: there is no such function, or the network does not take such images.
    """
    if text in EXTRACTORS:
        return EXTRACTORS[text]
    module_name, _, function = text.partition(":")
    try:
        sys.path.insert(0, "")  # as `python -m` has it: a file in the current folder
        network, variables = getattr(importlib.import_module(module_name), function)()
        own = _Own(network)
        shapes = jax.eval_shape(own.apply, {"params": variables}, jax.ShapeDtypeStruct((2, *image_shape), np.uint8))
        if len(shapes["features"].shape) != 2 or shapes["features"].shape[0] != 2:
            raise ValueError(f"features of 2 images have shape {list(shapes['features'].shape)}; should be [2, D]")
    except Exception as error:  # it is the user's code
        raise ConfigError(
            f"--features {text}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    finally:
        sys.path.remove("")
    return Extractor(
        name=text,
        network=lambda resizing: own,
        parameters=lambda tensors: tensors,
        find=lambda: None,
        file=text,
        hint="",
        resizing="its own",
        dimension=shapes["features"].shape[1],
        classifies="logits" in shapes,
        variables=variables,
    )


@dataclasses.dataclass(frozen=True)
class Features:
    """Extracts the features of many images.

    Attributes:
      apply: from a batch of images to the network's outputs.
      batch_size: a multiple of `devices`; fewer images take a smaller batch.
      devices: how many share a batch.
    """

    apply: Apply
    batch_size: int
    devices: int = 1

    @classmethod
    def on_devices(cls, network: Any, params: dict, mesh: Mesh, batch_size: int) -> "Features":
        """Returns the features of a network with parameters, computed on all devices of the mesh."""
        replicated, divided = sharding.replicated(mesh), sharding.sharded(mesh)
        apply = jax.jit(lambda params, x: network.apply({"params": params}, x), out_shardings=replicated)
        params = jax.device_put(params, replicated)
        return cls(lambda batch: apply(params, jax.device_put(batch, divided)), batch_size, mesh.size)

    def __call__(self, images: Stack, label: str, keep: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Returns `mean` and `covariance` of the features of images, and the outputs that `keep` names.

        Args:
          images: uint8 [N, H, W, 1 or 3].
          label: what the progress line begins with.
          keep: outputs to return for all images, "features" [N, D] or "logits" [N, K].
        """
        batch_size = min(self.batch_size, -(-len(images) // self.devices) * self.devices)
        moments, loop = Moments(), progress.Loop(label, 0, len(images), "images")
        outputs: dict[str, list[np.ndarray]] = {name: [] for name in keep}
        for batch, mask in pipeline.padded(images, batch_size):
            output = {name: np.asarray(value)[mask] for name, value in self.apply(batch).items()}
            moments = moments.add(output["features"])
            for name in keep:
                outputs[name].append(output[name])
            loop(moments.count)
        return moments.summary() | {name: np.concatenate(parts) for name, parts in outputs.items()}
