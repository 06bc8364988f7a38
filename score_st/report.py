"""Pictures of what a run made; `python -m score_st.report` draws several runs side by side."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from score_st import cli
from score_st.config import ConfigError

EXAMPLES = "  python -m score_st.report --workdir runs/digits runs/no_st --out runs/loss_by_time.png"


def sheet(images: np.ndarray, num_levels: int, columns: int | None = None, gap: int = 2) -> Image.Image:
    """Images uint8 [N, H, W, C] side by side, by default in a square; small ones enlarged, pixels kept sharp."""
    n, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    pixels = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    shown = (images.astype(np.float32) * 255 / (num_levels - 1)).round().astype(np.uint8)
    for i, image in enumerate(shown):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        pixels[top : top + height, left : left + width] = image
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    scale = max(1, 512 // max(picture.size))
    return picture.resize((picture.width * scale, picture.height * scale), Image.NEAREST)


def grid(images: np.ndarray, num_levels: int, path: Path, columns: int | None = None):
    """A PNG of images uint8 [N, H, W, C], see `sheet`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet(images, num_levels, columns).save(path)


def animation(frames: np.ndarray, num_levels: int, path: Path):
    """A GIF of images uint8 [F, N, H, W, C]; the last frame stays for two seconds."""
    sheets = [sheet(images, num_levels).convert("P") for images in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    sheets[0].save(path, save_all=True, append_images=sheets[1:], duration=[80] * (len(sheets) - 1) + [2000], loop=0)


def loss_by_time(curves: dict[str, dict], path: Path):
    """A PNG of the loss over t of several runs: mean over the test images and one standard deviation."""
    from matplotlib.figure import Figure

    panels = 1 + (len(curves) > 1)
    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    left, *rest = np.atleast_1d(figure.subplots(1, panels))
    for name, curve in curves.items():
        t, loss, std = (np.asarray(curve[key]) for key in ("t", "loss", "std"))
        (line,) = left.plot(t, loss, label=name)
        left.fill_between(t, np.maximum(loss - std, 1e-6), loss + std, color=line.get_color(), alpha=0.15, linewidth=0)
        for right in rest:
            right.plot(t, loss / np.asarray(next(iter(curves.values()))["loss"]), label=name)
    left.set(xscale="log", yscale="log", xlabel="t", ylabel="½ ‖σ s + z‖² a dimension [nats]", title="Loss by time")
    for right in rest:
        right.set(xscale="log", xlabel="t", ylabel=f"relative to {next(iter(curves))}", title="Side by side")
    for axes in (left, *rest):
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def bpd_by_time(curve: dict, path: Path):
    """A PNG of what each time adds to the NELBO, and of the gradient's variance, plain and likelihood-weighted."""
    from matplotlib.figure import Figure

    t, weight = np.asarray(curve["t"]), np.asarray(curve["weight"])
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(t, np.asarray(curve["bits"]) * math.log(10))
    left.set(xscale="log", xlabel="t", ylabel="bits/dim a decade of t", title="Diffusion term of the NELBO")
    if "gradient_variance" in curve:
        variance = np.asarray(curve["gradient_variance"])
        right.plot(t, variance, label="½ ‖σ s + z‖²")
        right.plot(t, variance * weight**2, label="½ g²/σ² ‖σ s + z‖²")
        right.legend()
    right.set(xscale="log", yscale="log", xlabel="t", ylabel="variance", title="Gradient of the loss a dimension")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None):
    parser = cli.Parser(
        prog="python -m score_st.report",
        description="Draws the loss over t of evaluated runs side by side.",
        epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", nargs="+", required=True, metavar="DIR", help="runs to compare, the first is the base"
    )
    parser.add_argument("--out", required=True, metavar="FILE.png", help="the picture")
    arguments = parser.parse_args(argv)
    curves = {}
    for workdir in map(Path, arguments.workdir):
        try:
            curves[str(workdir)] = json.loads((workdir / "eval/loss_by_time.json").read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"--workdir {workdir}: no eval/loss_by_time.json; `python -m score_st.eval` makes it"
            ) from error
    try:
        loss_by_time(curves, Path(arguments.out))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--out {arguments.out}: can't be written ({error}); a .png in an existing folder would do"
        ) from error
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    cli.run(main)
