"""Networks as EDM and diffusers save them, made without their code: small, of random weights drawn from their names.

`fixtures/foreign_networks.json` has their options and the names and shapes of their tensors, and
`foreign_networks.npz` what this package computed with them when it agreed with the other packages on larger ones.
"""

import json
import math
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_st.pytorch import file as torch_file
from support.official import FIXTURES

NETWORKS = json.loads((FIXTURES / "foreign_networks.json").read_text())


def drawn(name: str, shape: list[int]) -> np.ndarray:
    """A float32 tensor that follows from its name; outputs have about the size 1."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name in ("map_noise.freqs", "time_proj.weight"):
        return np.float32(16 * values)
    if len(shape) > 1:
        return np.float32(values / math.sqrt(np.prod(shape[1:])))
    return np.float32(0.2 * values + ("norm" in name and name.endswith("weight")))


def tensors(kind: str) -> dict[str, np.ndarray]:
    """The tensors of a network of NETWORKS, by name."""
    return {name: drawn(name, shape) for name, shape in NETWORKS[kind]["shapes"].items()}


class Call(NamedTuple):
    """A call in a pickle."""

    module: str
    name: str
    arguments: tuple = ()
    state: Any = None


def pickled(node: Any) -> bytes:
    """The instructions of protocol 4 that build a tree of containers, numbers, text, bytes, arrays and calls."""
    text = lambda value: b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if node is None or isinstance(node, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[node]
    if isinstance(node, Call):
        made = text(node.module) + text(node.name) + b"\x93" + pickled(node.arguments)
        return made + (b"R" if node.state is None else b"\x81" + pickled(node.state) + b"b")
    if isinstance(node, int):
        return b"\x8a\x08" + struct.pack("<q", node)
    if isinstance(node, float):
        return b"G" + struct.pack(">d", node)
    if isinstance(node, str):
        return text(node)
    if isinstance(node, bytes):
        return b"B" + struct.pack("<I", len(node)) + node
    if isinstance(node, dict):
        return b"}(" + b"".join(pickled(part) for pair in node.items() for part in pair) + b"u"
    if isinstance(node, tuple | list):
        start, end = (b"(", b"t") if isinstance(node, tuple) else (b"](", b"e")
        return start + b"".join(map(pickled, node)) + end
    if isinstance(node, set):
        return b"\x8f"
    strides = tuple(math.prod(node.shape[i + 1 :]) for i in range(node.ndim))
    storage = Call("torch.storage", "_load_from_bytes", (storage_file(node),))
    tensor = Call("torch._utils", "_rebuild_tensor_v2", (storage, 0, node.shape, strides, False, Call(*ORDERED)))
    return pickled(Call("torch._utils", "_rebuild_parameter", (tensor, True, Call(*ORDERED))))


ORDERED = ("collections", "OrderedDict")


def storage_file(array: np.ndarray) -> bytes:
    """What torch.save wrote before PyTorch 1.6 for the storage of an array."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = [pickle.dumps(value, 2) for value in (torch_file.LEGACY_MAGIC, 1001, machine)]
    reference = b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    reference += b"J" + struct.pack("<i", array.size) + b"NtQ."
    return b"".join([*head, reference, pickle.dumps(["0"], 2), struct.pack("<q", array.size), array.tobytes()])


def persistent(name: str, state: dict, source: str = "") -> Call:
    """An object of a class of EDM."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}
    return Call("torch_utils.persistence", "_reconstruct_persistent_obj", (meta,))


def module(name: str, values: dict[str, Any], **state: Any) -> Call:
    """A module whose tensors are `values`, by dotted name; the class names of those inside do not matter."""
    groups: dict[str, dict] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    children: dict[str, dict] = {}
    for key, value in values.items():
        head, _, rest = key.partition(".")
        if rest:
            children.setdefault(head, {})[rest] = value
        else:
            groups["_buffers" if head in ("freqs", "resample_filter") else "_parameters"][head] = value
    for key, inside in children.items():
        if key in ("enc", "dec"):
            filled = module("", inside).arguments[0]["state"]
            groups["_modules"][key] = Call("torch.nn.modules.container", "ModuleDict", (), filled)
        else:
            groups["_modules"][key] = module("Conv2d", inside)
    return persistent(name, {"training": False, "_non_persistent_buffers_set": set()} | groups | state)


def edm_tree(kind: str, values: dict[str, np.ndarray] | None = None, source: str = "", **changes: Any) -> dict:
    """The content of a snapshot of EDM's training loop.

    Args:
      kind: of NETWORKS.
      values: its tensors, by default `tensors`.
      source: the text of the module that defines the wrapper.
      **changes: `wrapper` and `network`, names of classes, and `options` and `attributes` (of the wrapper),
        dictionaries, where they are others.
    """
    about, values = NETWORKS[kind], tensors(kind) if values is None else values
    options = about["options"] | changes.get("options", {})
    inner = module(changes.get("network", "SongUNet"), values, _init_args=(), _init_kwargs=options)
    state = {"_parameters": {}, "_buffers": {}, "_modules": {"model": inner}}
    state |= about["attributes"] | changes.get("attributes", {})
    ema = persistent(changes.get("wrapper", about["wrapper"]), state, source)
    loss = persistent(about["wrapper"].replace("Precond", "Loss"), {"P_mean": -1.2})
    return {"ema": ema, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": {"path": "datasets/images.zip"}}


def write_edm(path: Path, tree: dict) -> Path:
    """Writes a snapshot; returns its path."""
    path.write_bytes(b"\x80\x04" + pickled(tree) + b".")
    return path


def write_diffusers(folder: Path, kind: str, **options: Any) -> Path:
    """Writes the folder of a UNet2DModel, with a .bin file and with some options changed; returns its path."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(NETWORKS[kind]["options"] | options))
    torch_file.write(folder / "diffusion_pytorch_model.bin", tensors(kind))
    return folder
