"""Networks of EDM (Karras et al. 2022), read from their pickles without torch and without running their code.

Such a pickle has objects of EDM's classes, each with the text of the module that defines it. Here they are names and
dictionaries, and the text is data like any other.
"""

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_st.array_types import Float
from score_st.config import ConfigError
from score_st.pytorch import file
from score_st.pytorch.module_order import Foreign, Part
from score_st.pytorch.unpickler import Damaged, Global, Machine, Storage, Tensor

LARGEST = 2**30  # bytes of a file; the published networks have 2^28
MOST_TENSORS = 20_000


class Object:
    """An object of a class of EDM or of PyTorch: the name of its class, and its attributes."""

    def __init__(self, name: str, state: dict[str, Any]) -> None:
        """Keeps both."""
        self.name, self.state = name, state


def _persistent(meta: Any) -> Object:
    """What EDM's `persistence` would make of `meta`; its text `module_src` is not looked at."""
    if type(meta) is not dict or not isinstance(meta.get("class_name"), str) or type(meta.get("state")) is not dict:
        raise Damaged("a persistent object has no class or no state")
    return Object(meta["class_name"], meta["state"])


def _load_from_bytes(content: Any) -> Storage:
    """The storage in the bytes of a whole file of torch.save."""
    if type(content) is not bytes:
        raise Damaged("the data of a tensor are not bytes")
    storage = file.read_legacy(content, io.BytesIO(content))
    if not isinstance(storage, Storage):
        raise Damaged("the data of a tensor are something else")
    return storage


class NetworkMachine(Machine):
    """Interprets the pickle of a network, all of whose objects are an `Object`, a container, a number or a tensor."""

    given_limit = LARGEST
    functions = {
        **Machine.functions,
        Global("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        Global("torch.storage", "_load_from_bytes"): _load_from_bytes,
        Global("torch.nn.modules.container", "ModuleDict"): lambda: Object("ModuleDict", {}),
        Global("dnnlib.util", "EasyDict"): lambda: {},
    }

    def new(self, _: Any) -> None:
        """Makes an object of a class without arguments."""
        if self.stack[-1] != ():
            raise Damaged("its pickle makes an object with arguments")
        self.reduce(None)

    def build(self, _: Any) -> None:
        """Sets the attributes of an `Object`; otherwise as for checkpoints."""
        target, state = (None, *self.stack)[-2:]
        if isinstance(target, Object) and type(state) is dict:
            target.state.update(self.stack.pop())
        else:
            super().build(None)


NetworkMachine.actions = {
    **Machine.actions,
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "NEWOBJ": NetworkMachine.new,
    "BUILD": NetworkMachine.build,
}


class Wrapper(NamedTuple):
    """A preconditioning of EDM, in our words.

    Attributes:
      attributes: of the object, numbers that it has.
      settings: of our configuration, from those numbers.
    """

    attributes: tuple[str, ...]
    settings: Any


def _edm(sigma_data: float) -> dict[str, Any]:
    """The SDE is VE with EDM's range of noise, for images in [-1, 1]."""
    settings: dict[str, Any] = {"training.sde": "vesde", "model.sigma_min": 0.002, "model.sigma_max": 80.0}
    settings |= {"model.parametrization": "edm", "model.time_conditioning": "log_noise_level"}
    settings |= {"model.data_std": sigma_data, "data.centered": True}
    return settings | {"training.time_sampler": "lognormal", "training.weighting": "edm"}


def _vp(beta_d: float, beta_min: float, M: float) -> dict[str, Any]:
    """The SDE is VP, and the network predicts the noise."""
    if M != 1000:
        raise ConfigError(f"VPPrecond has M={M:g}; only 1000 can be converted, as 999 t is what networks are told")
    settings: dict[str, Any] = {"training.sde": "vpsde", "model.beta_min": beta_min}
    settings |= {"model.beta_max": beta_min + beta_d, "model.parametrization": "noise"}
    return settings | {"model.time_conditioning": "bounded", "data.centered": True}


def _ve(sigma_min: float, sigma_max: float) -> dict[str, Any]:
    """The SDE is VE, for images in [0, 1] with half the noise, as in score_sde: the network is told log(σ/2)."""
    settings: dict[str, Any] = {"training.sde": "vesde", "model.scale_by_sigma": True, "data.centered": False}
    settings |= {"model.sigma_min": sigma_min / 2, "model.sigma_max": sigma_max / 2}
    return settings | {"training.importance_sampling": False, "training.likelihood_weighting": False}


WRAPPERS = {
    "EDMPrecond": Wrapper(("sigma_data",), _edm),
    "VPPrecond": Wrapper(("beta_d", "beta_min", "M"), _vp),
    "VEPrecond": Wrapper(("sigma_min", "sigma_max"), _ve),
}
# options of SongUNet: the default, and our key or (None) the only value that can be converted
OPTIONS: dict[str, tuple[Any, str | None]] = {
    "img_resolution": (None, "data.image_size"),
    "in_channels": (None, "data.num_channels"),
    "label_dim": (0, "model.num_classes"),
    "model_channels": (128, "model.nf"),
    "channel_mult": ((1, 2, 2, 2), "model.ch_mult"),
    "num_blocks": (4, "model.num_res_blocks"),
    "attn_resolutions": ((16,), "model.attn_resolutions"),
    "dropout": (0.10, "model.dropout"),
    "label_dropout": (0, "model.class_dropout"),
    "embedding_type": ("positional", "model.embedding_type"),
    "channel_mult_emb": (4, None),
    "decoder_type": ("standard", None),
}
ENCODERS = {"standard": "none", "residual": "residual"}
LEAVES = {
    "block": {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1"}
    | {"Conv_1": "conv1", "Conv_2": "skip"},
    "attention": {"GroupNorm_0": "norm2", "NIN_3": "proj"} | {f"NIN_{i}": "qkv" for i in range(3)},
}
ALL = slice(None)


def is_network(path: Path) -> bool:
    """Whether a file begins as EDM's pickles do, and no file of torch.save."""
    try:
        with path.open("rb") as opened:
            return opened.read(2) in (b"\x80\x04", b"\x80\x05")
    except OSError:
        return False


def read(path: Path) -> Foreign:
    """The network in a pickle of EDM's training loop.

    Raises:
      ConfigError: the file can't be read, is damaged, would run code, or has a network that can't be converted.
    """
    content = file.mapped(path)
    with file.refusing(path):
        if len(content) > LARGEST:
            raise Damaged(f"it has {len(content)} bytes, more than any network of EDM")
        tree = NetworkMachine({}).run(content)
        if content.tell() != len(content):
            raise Damaged("a pickle with something after its end")
        try:
            return _network(tree)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error


def _network(tree: Any) -> Foreign:
    wrapper = tree.get("ema") if type(tree) is dict else None
    if not isinstance(wrapper, Object):
        raise ConfigError("has no 'ema', the network; should be a snapshot of EDM (network-snapshot-….pkl)")
    inner = _child(wrapper, "model")
    for what, name, known in (("", wrapper.name, WRAPPERS), (" around a network", inner.name, {"SongUNet": 0})):
        if name not in known:
            raise ConfigError(f"is {name[:40]}{what}; only EDM's {', '.join(known)} can be converted")
    options = _options(inner)
    numbers = {key: _number(wrapper.state.get(key), key) for key in WRAPPERS[wrapper.name].attributes}
    settings = _settings(options) | WRAPPERS[wrapper.name].settings(**numbers)
    tensors = dict(_tensors(inner, "", 0, []))
    size, levels, blocks = options["img_resolution"], len(options["channel_mult"]), options["num_blocks"]
    ignored = lambda name: name.endswith(".resample_filter") or name.startswith("map_augment.")
    data = tree.get("dataset_kwargs")
    place = data.get("path") if type(data) is dict else None
    notes = (f"the network was trained on {Path(place).name[:60]!r}",) if isinstance(place, str) else ()
    return Foreign("a SongUNet", settings, tensors, _namer(size, levels, blocks), ignored, notes)


def _child(parent: Object, name: str) -> Object:
    children = parent.state.get("_modules")
    if not isinstance(children, dict) or not isinstance(children.get(name), Object):
        raise ConfigError(f"{parent.name[:40]} has no {name}; the file is no snapshot of EDM")
    return children[name]


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} should be a finite number")
    return float(value)


def _options(network: Object) -> dict[str, Any]:
    """The options that the network was built with, completed by their defaults."""
    given = network.state.get("_init_kwargs")
    if type(given) is not dict or network.state.get("_init_args") not in (None, (), []):
        raise ConfigError("SongUNet has no options by name; the file is no snapshot of EDM")
    defaults: dict[str, Any] = {key: default for key, (default, _) in OPTIONS.items()}
    defaults |= {"out_channels": given.get("in_channels"), "encoder_type": "standard", "augment_dim": 0}
    defaults |= {"channel_mult_noise": 1, "resample_filter": (1, 1)}
    for key, value in given.items():
        if key not in defaults:
            raise ConfigError(f"SongUNet has the option {str(key)[:40]!r}, which is unknown here")
        if not _is_plain(value):
            raise ConfigError(f"SongUNet has an option {key} that is neither a number nor a text nor a few numbers")
        defaults[key] = tuple(value) if isinstance(value, list) else value
    size, levels = defaults["img_resolution"], defaults["channel_mult"]
    if type(size) is not int or type(levels) is not tuple or type(defaults["num_blocks"]) is not int:
        raise ConfigError("SongUNet's img_resolution, channel_mult and num_blocks should be whole numbers")
    return defaults


def _is_plain(value: Any) -> bool:
    """Whether an option is one that SongUNet has: anything else may take forever to be shown."""
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(isinstance(entry, int | float) and _is_plain(entry) for entry in value)
    short = isinstance(value, str) and len(value) <= 64 and value.isprintable()
    return value is None or short or (isinstance(value, int | float) and abs(value) < 2**31)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Our keys for the options of SongUNet, and what all of EDM's networks have in common."""
    fourier = options["embedding_type"] == "fourier"
    needed = {key: default for key, (default, ours) in OPTIONS.items() if ours is None}
    needed |= {"channel_mult_noise": 2 if fourier else 1, "out_channels": options["in_channels"]}
    for key, value in needed.items():
        if options[key] != value:
            raise ConfigError(f"SongUNet has {key}={str(options[key])[:40]}; only {value} can be converted")
    if options["encoder_type"] not in ENCODERS:
        kinds = " and ".join(ENCODERS)
        raise ConfigError(
            f"SongUNet has encoder_type={str(options['encoder_type'])[:40]}; only {kinds} can be converted"
        )
    settings = {ours: options[key] for key, (_, ours) in OPTIONS.items() if ours}
    settings |= {"model.progressive_input": ENCODERS[options["encoder_type"]], "model.fourier_scale": 16.0}
    settings |= {"model.fir": options["resample_filter"] != (1, 1), "model.skip_rescale": True}
    if settings["model.fir"]:
        settings["model.fir_kernel"] = options["resample_filter"]
    settings |= {"data.dequantization": "lossless", "model.resblock_type": "biggan", "training.st": False}
    # the deterministic sampler: 18 noise levels for 32 pixels, 40 for 64, the last step being `noise_removal`
    settings |= {"sampling.method": "pc", "sampling.predictor": "heun", "sampling.grid": "edm"}
    return settings | {"sampling.steps": 17 if options["img_resolution"] <= 32 else 39}


def _tensors(
    parent: Object, prefix: str, depth: int, seen: list[str]
) -> Iterator[tuple[str, Float[np.ndarray, "..."]]]:
    """Yields the tensors of an object and of its children, by name."""
    if depth > 4:
        raise Damaged("its modules nest deeper than those of a network")
    for group in ("_parameters", "_buffers", "_modules"):
        members = parent.state.get(group, {})
        if not isinstance(members, dict):
            raise Damaged(f"{group} of {parent.name[:40]} is not a dictionary")
        for key, value in members.items():
            name = f"{prefix}{str(key)[:40]}"
            seen.append(name)
            if not name.isprintable():
                raise Damaged("the name of a tensor can't be printed")
            if len(seen) > MOST_TENSORS:
                raise Damaged("it has more tensors than any network")
            if group == "_modules" and isinstance(value, Object):
                yield from _tensors(value, f"{name}.", depth + 1, seen)
            elif group != "_modules" and isinstance(value, Tensor):
                yield name, value.array()
            elif value is not None:
                raise Damaged(f"{name} is neither a tensor nor a module")


def _namer(size: int, levels: int, blocks: int) -> Any:
    """The names of a SongUNet's tensors, see `Foreign`."""
    at = lambda level: f"{size // 2**level}x{size // 2**level}"
    lowest = at(levels - 1)
    single = {"fourier": "map_noise.freqs", "classes": "map_label", "merge": ""}

    def prefix(part: Part) -> str:
        if part.kind == "dense":
            return f"map_layer{part.number}"
        if part.place in ("in", "pyramid") and part.kind == "conv":
            return f"enc.{at(0)}_conv" if part.place == "in" else f"enc.{at(part.level + 1)}_aux_residual"
        if part.place == "middle":
            return f"dec.{lowest}_in{part.number}"
        if part.place == "out":
            return f"dec.{at(0)}_aux_{part.kind}"
        if part.place in ("resample_down", "resample_up"):
            down = part.place == "resample_down"
            return f"enc.{at(part.level + 1)}_down" if down else f"dec.{at(part.level - 1)}_up"
        index = blocks if (part.kind, part.place) == ("attention", "up") else part.number
        return f"{'enc' if part.place == 'down' else 'dec'}.{at(part.level)}_block{index}"

    def name_of(part: Part, leaf: str) -> tuple[str, slice]:
        if part.kind in single:
            suffix = "" if part.kind == "fourier" else "." + leaf.split(".")[-1]
            return single[part.kind] + suffix, ALL
        head, _, last = leaf.rpartition(".")
        last = {"W": "weight", "b": "bias"}.get(last, last)
        inside = LEAVES.get(part.kind, {}).get(head, "")
        rows = slice(int(head[-1]), None, 3) if inside == "qkv" else ALL  # interleaved
        return ".".join(filter(None, (prefix(part), inside, last))), rows

    return name_of
