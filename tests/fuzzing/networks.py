"""Networks of other people: weights as safetensors, EDM's pickles, diffusers' folders."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support import foreign, hostile
from support.commands import tiny

from fuzzing import Read, Silent, Target, sound
from score_st.config import ConfigError


def safetensors_targets() -> list[Target]:
    """Ours, whose header has the configuration; the format has no checksums."""
    import jax
    from safetensors import numpy as library

    from score_st import weights_file
    from score_st.model import DiffusionModel

    config = tiny(model__ch_mult=(1,), model__num_res_blocks=1)
    model = DiffusionModel.from_config(config)
    leaf = lambda shape: np.ones(shape.shape, shape.dtype)
    with tempfile.TemporaryDirectory() as folder:
        weights_file.write(path := Path(folder) / "x", jax.tree.map(leaf, model.abstract_params), config, {"step": 3})
        content = path.read_bytes()
        tensors, header = library.load_file(path), weights_file.header(path)

    def read(path: Path) -> Any:
        weights_file.configuration(path)
        found = weights_file.read(path, model)
        sound(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), "not finite")

    def saved(changed: Any) -> bytes:
        try:
            return library.save(tensors, {key: str(value) for key, value in changed.items()})
        except Exception:  # a header that is none
            return b""

    length = int.from_bytes(content[:8], "little")
    texts = hostile.json_texts(content[8 : 8 + length])
    framed = texts.map(lambda text: len(text).to_bytes(8, "little") + text + content[8 + length :])
    settings = hostile.json_texts(header["config"].encode()).map(lambda text: text.decode("utf-8", "replace"))
    headers = st.one_of(hostile.changed(header), settings.map(lambda text: header | {"config": text}))
    return [Target("safetensors", "a.safetensors", [content], read, st.one_of(framed, headers.map(saved)))]


def read_network(path: Path) -> Any:
    """Reads a network down to its configuration and its model."""
    from score_st.model import DiffusionModel
    from score_st.pytorch import imported

    network = imported.read(path)
    if network is None:
        raise ConfigError("no network of EDM or diffusers")
    config = imported.configuration(network, {})
    model = DiffusionModel.from_config(config)
    imported.training_state(network, config, model)


def edm_targets(canary: str) -> list[Target]:
    """Pickles that are damaged, random, run something, or have other options and tensors."""

    def read(path: Path) -> Any:
        try:
            read_network(path)
        finally:
            if os.path.exists(canary):
                os.rmdir(canary)
                raise Silent("code of the file ran")

    def packed(kind: str, parts: Any) -> bytes:
        try:
            options, attributes, tensors = (parts[key] for key in ("options", "attributes", "tensors"))
            tree = foreign.edm_tree(kind, tensors, "import os", options=options, attributes=attributes)
            return b"\x80\x04" + foreign.pickled(tree) + b"."
        except Exception:  # no options, or a number that is too large
            return b""

    def changed(kind: str) -> st.SearchStrategy[bytes]:
        about = foreign.NETWORKS[kind]
        options = hostile.changed({"options": about["options"], "attributes": about["attributes"]})
        with_tensors = lambda tree: {**tree, "tensors": None} if isinstance(tree, dict) else tree
        shapes = hostile.changed(foreign.tensors(kind), arrays)
        both = shapes.map(lambda found: {"options": {}, "attributes": {}, "tensors": found})
        return st.one_of(options.map(with_tensors), both).map(lambda parts: packed(kind, parts))

    arrays = st.sampled_from([np.ones(3, np.float32), np.full((2, 2), np.nan, np.float32), None, 3, "x", {}])
    kinds = ("edm", "vp", "ve")
    valid = [b"\x80\x04" + foreign.pickled(foreign.edm_tree(kind)) + b"." for kind in kinds]
    random = hostile.pickles(canary).map(lambda content: b"\x80\x04" + content)
    built = st.one_of(random, *map(changed, kinds))
    return [Target("EDM", "a.pkl", valid, read, built)]


def diffusers_targets() -> list[Target]:
    """Every file of a folder of UNet2DModel, and the scheduler's."""
    from safetensors import numpy as library

    kinds = ("ddpm", "ncsnpp", "old_names")
    folder: Read = lambda path: read_network(path.parent)

    def beside(kind: str, without: str) -> Any:
        def write(place: Path) -> None:
            place.rmdir()
            foreign.write_diffusers(place, kind)
            (place / without).unlink(missing_ok=True)

        return write

    weights, targets = "diffusion_pytorch_model", list[Target]()
    schedules = {
        "ddpm": {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000, "variance_type": "fixed_large"},
        "ncsnpp": {"sigma_min": 0.01, "sigma_max": 1348.0},
    }
    for kind in kinds:
        options = json.dumps(foreign.NETWORKS[kind]["options"]).encode()
        files = {"config.json": options}
        if kind in schedules:
            files["scheduler_config.json"] = json.dumps(schedules[kind]).encode()
        for name, content in files.items():
            built, others = hostile.json_texts(content), beside(kind, name)
            targets.append(Target(f"{kind}, {name}", name, [content], folder, built, others=others))
        tensors = library.save(foreign.tensors(kind))
        file = f"{weights}.safetensors"
        targets.append(Target(f"{kind}, safetensors", file, [tensors], folder, others=beside(kind, f"{weights}.bin")))
    return targets
