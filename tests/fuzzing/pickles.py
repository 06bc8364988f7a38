"""Pickles: CIFAR-10's, and checkpoints of PyTorch."""

import io
import os
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support import hostile, image_files
from support.official import CHECKPOINT, FIXTURES

from fuzzing import Silent, Target, touch


def pickle_targets(canary: str) -> list[Target]:
    """CIFAR-10, and checkpoints of PyTorch in both formats, down to the training state."""
    from score_st.data import array_datasets
    from score_st.pytorch import checkpoint
    from score_st.pytorch import file as torch_file

    rows = image_files.noise(3, 3072)
    batch = {
        b"batch_label": b"x",
        b"labels": list(range(300)),
        b"data": rows,
        b"filenames": [b"%d" % i for i in range(300)],
    }
    python2 = pickle.dumps(batch, 2).replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
    small = {"model": {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3)}, "step": 3}
    folder = Path(tempfile.mkdtemp())
    torch_file.write(folder / "x", small)
    made = (folder / "x").read_bytes()
    shutil.rmtree(folder)
    content = torch_file.read(CHECKPOINT)
    from support.official import tiny as official

    config, model = official()

    def ran() -> None:
        if os.path.exists(canary):
            os.rmdir(canary)
            raise Silent("code of the file ran")

    def cifar(path: Path) -> Any:
        try:
            return {"rows": array_datasets.read_cifar10(image_files.settings("CIFAR10", path.parent), "test")}
        finally:
            ran()

    def torch(path: Path) -> Any:
        try:
            found = torch_file.read(path)
        finally:
            ran()
        touch(found)
        return found

    def state(path: Path) -> Any:
        return checkpoint.state_from_torch(torch(path), config, model)

    legacy = (FIXTURES / "official_legacy.pth").read_bytes()
    pickles = hostile.pickles(canary)
    data = {f"data/{i}": array.tobytes() for i, array in enumerate(small["model"].values())}
    in_zip = st.one_of(pickles, hostile.mutated([zip_entry(made, "data.pkl")])).map(
        lambda p: hostile.torch_zip(p, data)
    )
    trees = hostile.changed(content, st.one_of(hostile.trees, st.just(np.ones(3)), st.just(np.full((2, 2), np.nan))))

    def packed(tree: Any) -> bytes:
        with tempfile.TemporaryDirectory() as place:
            try:
                torch_file.write(Path(place) / "x", tree)
            except Exception:  # text that is no text, numbers too large
                return b""
            return (Path(place) / "x").read_bytes()

    targets = [
        Target("CIFAR-10", "test_batch", [python2, pickle.dumps(batch, 4)], cifar, pickles),
        Target("CIFAR-10 binary", "test_batch.bin", [np.zeros((3, 3073), np.uint8).tobytes()], cifar),
        Target("torch", "a.pth", [made, CHECKPOINT.read_bytes()], torch, in_zip, True),
        Target("torch, legacy", "a.pth", [legacy], torch, pickles),
    ]
    at_last = Target("training state", "a.pth", [CHECKPOINT.read_bytes()], state, trees.map(packed), True)
    return [*targets * 10, at_last]  # which takes longer


def zip_entry(content: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(next(entry for entry in archive.namelist() if entry.endswith(name)))
