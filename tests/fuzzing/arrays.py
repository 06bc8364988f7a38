"""Arrays: npz, npy, idx and MATLAB files."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support import hostile, image_files
from support.commands import tiny

from fuzzing import Target, sound


def npz_of(save: Callable = np.savez_compressed, **arrays: np.ndarray) -> bytes:
    save(stream := io.BytesIO(), **arrays)
    return stream.getvalue()


def npz_targets() -> list[Target]:
    """Samples, features, statistics, shards, images to train on, prepared copies, official outputs."""
    from score_st.data import array_datasets, decoded_cache
    from score_st.evaluation import generation, sample_quality
    from score_st.pytorch import checkpoint
    from score_st.runtime import resumable

    draw = np.random.default_rng(0)
    both = lambda arrays: [npz_of(**arrays), npz_of(np.savez, **arrays)]
    images = {"samples": image_files.noise(6, 8, 8, 3), "nfe": np.arange(6.0)}
    features = {"pool_3": draw.normal(size=(12, 4)).astype(np.float32), "logits": np.zeros((12, 3))}
    statistics = {"mu": draw.normal(size=4), "sigma": np.cov(draw.normal(size=(9, 4)).T)}
    own = {"x_train": image_files.noise(5, 8, 8, 3), "x_test": image_files.noise(4, 8, 8, 3)}
    settings = tiny(model__ch_mult=(1,))
    golden = {"t": np.ones(2, np.float32), "x": np.ones((2, 1, 8, 8), np.float32)}
    golden["score_raw"] = golden["x"]

    def quality(path: Path) -> Any:
        result = sample_quality.read(path, 256)
        if "images" in result:
            sound(result["images"].dtype == np.uint8 and result["images"].ndim == 4, "no images")
        else:
            sound(all(np.isfinite(array).all() for array in result.values()), "not finite")
            sound(result["covariance"].shape == 2 * result["mean"].shape, "no covariance")
        return result

    def shard(path: Path) -> Any:
        results = resumable.JobFiles(path.parent, generation.SHARDS, resumable.NPZ)
        found = results((0,), lambda: images, valid=lambda shard: len(shard["nfe"]) >= 6)
        sound(np.array_equal(generation.read_shards(path.parent, 6), images["samples"]), "not drawn again")
        return {"samples": found["samples"], "nfe": found["nfe"]}

    def data(path: Path) -> Any:
        found = array_datasets.read_own_array(image_files.settings("NPY", path), "train")
        sound(found.dtype == np.uint8 and found.ndim == 4 and len(found), "no images")
        return {"images": np.array(found)}

    prepared = image_files.settings("FOLDER", "", image_size=8)

    def copy(path: Path) -> Any:
        prepared.data.prepared = str(path.parent)
        found = decoded_cache.open_copy(prepared, "train", lambda: images["samples"])
        return None if found is None else {"images": np.array(found[:])}

    about = {"settings": {key: prepared.data[key] for key in decoded_cache.MEANING}, "shape": [6, 8, 8, 3], "done": 6}
    zlib_crc = [int(hostile.zlib.crc32(images["samples"][i : i + 4].data)) for i in (0, 4)]
    about |= {"chunk": 4, "checksums": zlib_crc}
    beside = lambda folder: (folder / "FOLDER_train_8x3.json").write_text(json.dumps(about))
    npy, whole = hostile.npy_of(images["samples"]), lambda arrays: hostile.npz(arrays)
    Shard = Target("shard", "samples_0000000.npz", both(images), shard, None, True)
    return [
        Target("samples", "s.npz", both(images), quality, whole(images), True),
        Target("features", "f.npz", both(features), quality, whole(features), True),
        Target("statistics", "m.npz", both(statistics), quality, whole(statistics | features), True),
        Shard,
        Target("NPZ data", "d.npz", both(own), data, whole(own), True),
        Target("NPY data", "d.npy", [npy, hostile.npy_of(own["x_test"][..., 0])], data, hostile.npy()),
        Target("prepared copy", "FOLDER_train_8x3.npy", [npy], copy, hostile.npy(), True, others=beside),
        Target("golden", "g.npz", both(golden), lambda p: checkpoint.read_golden(p, settings), whole(golden), True),
    ]


def idx_targets() -> list[Target]:
    """Fashion-MNIST."""
    import gzip

    from score_st.data import idx

    content = image_files.idx(image_files.noise(3, 28, 28))

    def read(path: Path) -> Any:
        config = image_files.settings("FASHION_MNIST", path.parent, num_channels=1)
        found = idx.read_fashion_mnist(config, "train")
        sound(found.dtype == np.uint8 and found.shape[1:] == (32, 32, 1), "no images")
        return {"images": found}

    name = "train-images-idx3-ubyte"
    return [
        Target("idx", name, [content], read, hostile.idx()),
        Target("idx.gz", name + ".gz", [gzip.compress(content)], read, hostile.idx(), True),
    ]


def mat_targets() -> list[Target]:
    """SVHN."""
    import scipy.io

    from score_st.data import array_datasets

    variables = {"X": image_files.noise(32, 32, 3, 2), "y": np.arange(2)[:, None]}
    contents = []
    for options in ({"do_compression": True}, {"do_compression": False}, {"format": "4"}):
        arrays = {"X": variables["X"][..., 0, 0]} | {"y": variables["y"]} if "format" in options else variables
        scipy.io.savemat(stream := io.BytesIO(), arrays, **options)
        contents.append(stream.getvalue())

    def read(path: Path) -> Any:
        found = array_datasets.read_svhn(image_files.settings("SVHN", path.parent), "train")
        sound(found.dtype == np.uint8 and found.shape[1:] == (32, 32, 3), "no images")
        return {"images": found}

    name = "train_32x32.mat"
    return [
        Target("mat, compressed", name, contents[:1], read, hostile.mat(contents[:2]), True),
        Target("mat", name, contents, read, hostile.mat(contents[:2])),
    ]
