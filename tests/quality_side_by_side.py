"""FID of the same pictures by `score_st.quality`, torch-fidelity and clean-fid, with the same random weights.

    pip install torch torch-fidelity clean-fid      # in an environment of its own
    python tests/quality_side_by_side.py

Nothing is downloaded. Inception gets random weights in the published layout, calibrated so that no feature dies and
their spread is about 1. Ours is the real command, in a process of its own; it takes the weights by --features, since
--weights accepts none but the published ones. torch-fidelity takes them by path. clean-fid takes torch-fidelity's
network as its feature function; files, resizing and distance are its own. Statistics files go both ways. The exit
code is 1 if a FID, or features in units of their spread, differ by more than 1e-4.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cleanfid.fid
import jax
import numpy as np
import torch
import torch_fidelity
from PIL import Image
from sklearn.datasets import load_sample_images
from support.inception import pseudo_random_weights
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from score_st.evaluation import inception
from score_st.pytorch import file as torch_file
from score_st.reporting import pictures

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4
FEW = 16  # images whose features are compared one by one
MODES = {"tf1": "legacy_tensorflow", "clean": "clean", "pytorch-fid": "legacy_pytorch"}  # clean-fid's by our names
ZOOMS = {"samples": (0.8, 1.25), "reference": (1.25, 2)}
OURS = """
from score_st.evaluation import inception
from score_st.pytorch import file


def network(resizing):
    return lambda: (inception.Network(resizing), {"params": inception.from_torch(file.read("weights.pth"))})


tf1, clean, pytorch_fid = map(network, ("tf1", "clean", "pytorch-fid"))
"""
torch.set_grad_enabled(False)


def photographs(count: int, size: int, zoom: tuple[float, float], seed: int) -> np.ndarray:
    """Random squares of scikit-learn's two photographs, 1 / zoom as wide as `size`, resized to it [N, H, W, 3]."""
    rng, photos = np.random.default_rng(seed), [Image.fromarray(image) for image in load_sample_images().images]
    squares = []
    for _ in range(count):
        photo, width = photos[rng.integers(2)], round(size / rng.uniform(*zoom))
        left, top = rng.integers(photo.width - width + 1), rng.integers(photo.height - width + 1)
        square = photo.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + width, top + width))
        squares.append(np.asarray(square)[:, :: rng.choice([-1, 1])])
    return np.stack(squares)


def batch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def write_weights(path: Path) -> FeatureExtractorInceptionV3:
    """Writes random weights of the published layout with `torch.save`; returns torch-fidelity's network with them.

    Without batch normalization by the moments of pictures, 94 layers would let some features die. Its bias keeps most
    of each layer above 0: with kinks everywhere, float32's rounding alone grows to 2e-4 of the features' spread.
    """
    weights = pseudo_random_weights()
    torch_file.write(path, {name: value + np.float32(name.endswith("bn.bias")) for name, value in weights.items()})
    network = FeatureExtractorInceptionV3("", ["2048"], str(path))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = batch(np.concatenate([photographs(16, 32, zoom, 100 + i) for i, zoom in enumerate(ZOOMS.values())]))
    network.train()(images)
    spread = network.eval()(images)[0].std(0).mean()
    for name, module in network.Mixed_7c.named_modules():  # all end in a ReLU, which commutes with the scale
        last = ("branch1x1", "branch3x3_2a", "branch3x3_2b", "branch3x3dbl_3a", "branch3x3dbl_3b", "branch_pool")
        if name.endswith(".bn") and name.removesuffix(".bn") in last:
            module.weight /= spread
            module.bias /= spread
    torch.save(network.state_dict(), path)
    return FeatureExtractorInceptionV3("", ["2048"], str(path)).eval()


class Ours:
    """The command, and the features of its network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "random_inception.py").write_text(OURS)
        self.parameters = inception.from_torch(torch_file.read(folder / "weights.pth"))

    def fid(self, samples: Path, reference: Path, size: int, resizing: str, *more: str | Path) -> float:
        """The FID, of `python -m score_st.quality`."""
        command = [sys.executable, "-m", "score_st.quality", "--config", ROOT / "configs/vp/CIFAR10/ddpmpp_nll_st.py"]
        command += [f"--config.data.image_size={size}", f"--config.eval.batch_size={FEW}", "--workdir", "run"]
        command += ["--samples", samples, "--reference", reference, *more]
        command += ["--features", f"random_inception:{resizing.replace('-', '_')}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        ran = subprocess.run(list(map(str, command)), cwd=self.folder, env=environment, capture_output=True, text=True)
        if ran.returncode:
            sys.exit(ran.stdout + ran.stderr)
        (figure,) = json.loads((self.folder / "run/eval/quality.json").read_text())["figures"].values()
        return figure["value"]

    def features(self, images: np.ndarray, resizing: str) -> np.ndarray:
        network = inception.Network(resizing)
        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(network.apply)({"params": self.parameters}, images)["features"])


class Theirs:
    """torch-fidelity and clean-fid, and the features that they saw, as long as they go."""

    def __init__(self, network: FeatureExtractorInceptionV3, weights: Path) -> None:
        self.network, self.weights = network, weights
        self.layers = torch.nn.Sequential(*list(network.children())[:-1], torch.nn.Flatten())
        self.seen: list[np.ndarray] = []

    def torch_fidelity(self, samples: Path, reference: Path) -> float:
        keep = lambda module, inputs, output: (
            self.seen.append(output[0].numpy()) if isinstance(module, FeatureExtractorInceptionV3) else None
        )
        hook = torch.nn.modules.module.register_module_forward_hook(keep)
        paths = dict(input1=str(samples), input2=str(reference), feature_extractor_weights_path=str(self.weights))
        options = dict(batch_size=FEW, samples_shuffle=False, save_cpu_ram=True, cache=False, verbose=False)
        figures = torch_fidelity.calculate_metrics(fid=True, cuda=False, **paths, **options)
        hook.remove()
        return figures["frechet_inception_distance"]

    def function(self, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The features of images from 0 to 255 that clean-fid has resized, or left as they are for TensorFlow."""
        enlarge = lambda x: interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
        scales = {
            "clean": lambda x: (x - 128) / 128,
            "legacy_tensorflow": lambda x: (enlarge(x) - 128) / 128,
            "legacy_pytorch": lambda x: x / 127.5 - 1,
        }

        def features(x: torch.Tensor) -> torch.Tensor:
            outputs = self.layers(scales[mode](x))
            self.seen.append(outputs.numpy())
            return outputs

        return features

    def clean_fid(self, samples: Path, mode: str, **reference: str) -> float:
        options = dict(batch_size=FEW, num_workers=0, device=torch.device("cpu"), verbose=False)
        features = self.function(mode)
        return float(
            cleanfid.fid.compute_fid(str(samples), mode=mode, custom_feat_extractor=features, **reference, **options)
        )


class Table:
    """Prints rows as they come, and remembers whether all agree."""

    def __init__(self) -> None:
        self.agree = True
        print("| size | resizing | by | FID | difference | of features |\n|---|---|---|---|---|---|", flush=True)

    def row(self, size: int, resizing: str, tool: str, fid: float, ours: float, features: float | None = None) -> None:
        """Prints a FID, its relative difference from ours, and the largest difference of features."""
        differences = [abs(fid / ours - 1), *([] if features is None else [features])]
        self.agree &= all(difference < TOLERANCE for difference in differences)
        cells = [f"{difference:.0e}" for difference in differences] if tool != "ours" else []
        cells += [""] * (2 - len(cells))
        print(f"| {size} | {resizing} | {tool} | {fid:.5f} | {' | '.join(cells)} |", flush=True)


def compare(table: Table, ours: Ours, theirs: Theirs, size: int, resizings: list[str], count: int) -> None:
    """Adds the rows of pictures of a size, of which the reference is coarser than the samples."""
    paths = [ours.folder / f"{side}_{size}" for side in ZOOMS]
    sets = [photographs(count, size, zoom, i) for i, zoom in enumerate(ZOOMS.values())]
    for path, images in zip(paths, sets, strict=True):
        pictures.write([images], 256, path)
    few = np.concatenate([images[:FEW] for images in sets])

    def row(resizing: str, tool: str, fid: float, expected: float, features: np.ndarray) -> None:
        seen = np.concatenate(theirs.seen)
        seen = np.concatenate([seen[:FEW], seen[count : count + FEW]])
        theirs.seen.clear()
        table.row(size, resizing, tool, fid, expected, np.abs(seen - features).max() / features.std(0).mean())

    figures = {}
    for resizing in resizings:
        mode = MODES[resizing]
        written = ours.folder / f"{resizing}_{size}.npz"
        fid = figures[resizing] = ours.fid(*paths, size, resizing, "--statistics", written)
        table.row(size, resizing, "ours", fid, fid)
        features = ours.features(few, resizing)
        if resizing == "tf1":
            row(resizing, "torch-fidelity", theirs.torch_fidelity(*paths), fid, features)
        row(resizing, f"clean-fid, {mode}", theirs.clean_fid(paths[0], mode, fdir2=str(paths[1])), fid, features)
    if "clean" not in resizings:
        return
    # clean-fid keeps its statistics in a folder beside its own file
    with mock.patch.object(cleanfid, "__file__", str(ours.folder / "cleanfid.py")):
        stats = ours.folder / "stats"
        stats.mkdir(exist_ok=True)
        (ours.folder / f"clean_{size}.npz").rename(stats / f"ours{size}_clean_custom_na.npz")
        own = dict(dataset_name=f"ours{size}", dataset_split="custom")
        fid = theirs.clean_fid(paths[0], "clean", **own)
        table.row(size, "clean", "clean-fid, our statistics", fid, figures["clean"])
        network = mock.patch.object(
            cleanfid.fid, "build_feature_extractor", lambda mode, device: theirs.function(mode)
        )
        with network:
            options = dict(device=torch.device("cpu"), batch_size=FEW, verbose=False)
            with contextlib.redirect_stdout(sys.stderr):  # it says where it writes
                cleanfid.fid.make_custom_stats(f"theirs{size}", str(paths[1]), mode="clean", **options)
    theirs.seen.clear()
    for kind, about in (("", "mu and sigma"), ("_kid", "features")):
        fid = ours.fid(paths[0], stats / f"theirs{size}_clean_custom_na{kind}.npz", size, "clean")
        table.row(size, "clean", f"ours, clean-fid's {about}", fid, figures["clean"])


def main() -> None:
    """Prints the table; the exit code is 1 if something differs by more than 1e-4."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=32, help="pictures in each of the two sets (default 32)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 320], help="below 342 (default 32 320)")
    parser.add_argument("--resizings", nargs="+", choices=MODES, default=list(MODES), help="by default all three")
    arguments = parser.parse_args()
    names = ("torch", "torch-fidelity", "clean-fid", "scipy", "numpy", "jax")
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))
    with tempfile.TemporaryDirectory(prefix="quality_") as folder:
        weights = Path(folder, "weights.pth")
        theirs, ours, table = Theirs(write_weights(weights), weights), Ours(Path(folder)), Table()
        for size in arguments.sizes:
            compare(table, ours, theirs, size, arguments.resizings, arguments.count)
    sys.exit(not table.agree)


if __name__ == "__main__":
    main()
