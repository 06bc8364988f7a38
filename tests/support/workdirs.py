"""Workdirs with every file that a report reads, and known numbers."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from score_st import config

ROOT = Path(__file__).parents[2]


def write(path: Path, value: Any) -> None:
    """Writes text as it is, and anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def make_workdir(workdir: Path, k: float = 1.0) -> Path:
    """The workdir of a run that was trained and evaluated; no network was."""
    base = config.load(ROOT / "configs/vp/DIGITS/ddpmpp_nll_st.py")
    settings = json.loads(config.to_json(base)) | {"seed": 7}
    settings["training"]["k"] = k
    steady = {"gradient_norm": 2.0, "steps_per_s": 5.0, "data_wait": 0.0125, "arithmetic": "bfloat16"}
    steady |= {"tflops_per_s": 12.5, "mfu": 0.25, "goodput": 0.75}
    lines = [{"step": 10 * i, "loss": 8 / i, "tau": 0.01 / i, "eval_loss": 9 / i} | steady for i in range(1, 9)]
    lines += [{"step": 40, "nll": 2.5, "nelbo": 2.75}, {"step": 80, "nll": 1.875, "nelbo": 2.0}]
    t = np.geomspace(1e-5, 1, 5)
    curve = {name: (t**0.1).tolist() for name in ("loss", "std", "weight", "bits", "gradient_variance")}
    terms = {"prior": 2.0, "trace": -3.25, "reconstruction": 0.125, "offset": 3.0}
    bpd = {"nll": 1.875, "nll_terms": terms, "nll_stderr_images": 0.0625, "nll_nfe": 75.0, "images": 297, "step": 80}
    points = lambda *pairs: [{"nfe": nfe, "distance": distance} for nfe, distance in pairs]
    samplers = {"ode": points((60, 7.5)), "ddim": points((11, 9.25), (21, 6.5)), "heun": points((math.nan, math.nan))}
    write(workdir / "config.json", settings)
    write(workdir / "config_base.json", {"file": "configs/mine.py", "config": base.to_dict()})
    write(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write(workdir / "eval/loss_by_time.json", {"t": t.tolist(), **curve})
    write(workdir / "eval/bpd.json", bpd | {"versions": {"jax": "1.2.3"}})
    write(workdir / "eval/samplers.json", {"figure": "FID", "num": 200, "samplers": samplers})
    figure = {"value": 12.5, "std": None, "samples": 50, "features": "f", "resizing": "tf1", "reference": "train"}
    write(workdir / "eval/quality.json", {"figures": {"FID": figure}})
    rows = [
        {"name": "Dense_0/bias", "shape": [4], "size": 4},
        {"name": "Dense_0/kernel", "shape": [250, 4], "size": 1000},
    ]
    write(workdir / "parameters.json", rows)
    operations = [{"name": "conv.1", "program": "jit_train_step", "calls": 1200, "ms": 30.5, "share": 0.61}]
    trace = {"about": "steps 3 to 5 of training", "device": "TPU v4", "ms": 50.0, "operations": operations}
    write(workdir / "profile/operations.json", {"steps_3-5": trace})
    (workdir / "snapshots").mkdir()
    for step, size in ((40, 16), (80, 2000)):  # the second is too large for the page
        pixels = np.arange(size**2, dtype=np.uint8).reshape(size, size)
        Image.fromarray(pixels).save(workdir / f"snapshots/{step:08}.png")
    return workdir
