"""The networks whose features stand for images, and where their weights are."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from score_st.array_types import UInt8
from score_st.config import ConfigError
from score_st.data import pipeline
from score_st.data.images import Images
from score_st.evaluation import classifier, efficientnet, inception
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
      read: returns the tensors of a file of weights, by default of PyTorch's.
    """

    name: str
    network: Callable[[str], nn.Module]
    parameters: Callable[[dict], dict]
    find: Callable[[], Path | str | None]
    file: str
    hint: str
    resizing: str
    dimension: int
    classifies: bool = False
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
    def on_devices(cls, network: nn.Module, params: dict, mesh: Mesh, batch_size: int) -> "Features":
        """Returns the features of a network with parameters, computed on all devices of the mesh."""
        replicated, divided = sharding.replicated(mesh), sharding.sharded(mesh)
        apply = jax.jit(lambda params, x: network.apply({"params": params}, x), out_shardings=replicated)
        params = jax.device_put(params, replicated)
        return cls(lambda batch: apply(params, jax.device_put(batch, divided)), batch_size, mesh.size)

    def __call__(self, images: Images, label: str, keep: Sequence[str] = ()) -> dict[str, np.ndarray]:
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
