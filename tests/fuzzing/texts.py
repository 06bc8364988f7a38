"""JSON files."""

import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from support import hostile, image_files, workdirs

from fuzzing import Read, Target, sound
from score_st.config import ConfigError


def json_targets() -> list[Target]:
    """Every JSON file that a command reads."""
    from score_st import config
    from score_st.benchmarking import comparison
    from score_st.data import decoded_cache, identity
    from score_st.evaluation import generation
    from score_st.reporting import page, run
    from score_st.runtime import goodput, resumable, workdir
    from score_st.training import loop, saved_steps

    place = Path(tempfile.mkdtemp())
    full = workdirs.make_workdir(place / "run")
    images = image_files.noise(6, 8, 8, 3)
    ledger = resumable.JsonLines(place / "ledger.jsonl", {"seed": 0})
    for i in range(4):
        ledger((i,), lambda i=i: {"nll": np.arange(3.0) + i, "ok": np.ones(2, bool)})
    intact = {job: {key: value.tolist() for key, value in ledger._results[job].items()} for job in ledger._results}
    good = (place / "ledger.jsonl").read_bytes()
    settings = config.from_workdir(full)
    prepared = image_files.settings("FOLDER", "", image_size=8)

    def text(name: str, value: Any, read: Read, **more: Any) -> Target:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        lines = name.endswith(".jsonl")
        return Target(name, name, [content], read, hostile.json_texts(content, lines), **more)

    def configuration(path: Path) -> Any:
        (path.parent / "checkpoints").mkdir(exist_ok=True)
        with contextlib.suppress(ConfigError):
            workdir.check_same(path.parent, settings, lambda key: True)
            saved_steps.keep_snapshots(path.parent, 77)
        config.check(config.from_workdir(path.parent))

    def metrics(path: Path) -> Any:
        for line in loop.complete_lines(path, 60):
            sound(0 <= json.loads(line)["step"] <= 60, "a step that is none")
        path.write_text("".join(line + "\n" for line in loop.complete_lines(path, 60)), "utf-8")
        run.read(path.parent, "x").column("loss")

    def lines(path: Path) -> Any:
        content = path.read_bytes()
        found = resumable.JsonLines(path, {"seed": 0})
        if content.count(b"crc32") == good.count(b"crc32"):  # others are as older versions wrote them
            for job, result in found._results.items():
                sound({key: value.tolist() for key, value in result.items()} == intact.get(job), f"another {job}")
        result = found((2,), lambda: {"nll": np.arange(3.0) + 2, "ok": np.ones(2, bool)})
        again = resumable.JsonLines(path, {"seed": 0})
        sound(
            (2,) in again and all(np.array_equal(again._results[2,][key], result[key], True) for key in result), "lost"
        )

    def chunks(path: Path) -> Any:
        found = resumable.Chunks(path, {"seed": 0}, {"done": 0, "crc32": 0, "checksums": []})
        found((found.state["done"],), lambda: {"done": 5, "crc32": 1, "checksums": [1]})

    def recorded(path: Path) -> Any:
        with contextlib.redirect_stderr(io.StringIO()):
            identity.warn(path.parent, {"train": images})
        identity.check(path.parent, {"train": images})

    def copy(path: Path) -> Any:
        prepared.data.prepared = str(path.parent)
        found = decoded_cache.open_copy(prepared, "train", lambda: images)
        if found is not None and "checksums" in json.loads(path.read_bytes()):
            sound(np.array_equal(found[:], images), "other images")

    def kept(path: Path) -> Any:
        steps = saved_steps.kept_snapshots(path.parent)
        sound(all(type(step) is int for step in steps), "steps that are none")

    def goodputs(path: Path) -> Any:
        clock = goodput.Goodput(path.parent, 40)
        sound(0 <= clock.share() <= 1, f"goodput {clock.share()}")
        clock.keep(50)
        json.loads(path.read_text())

    def report(path: Path) -> Any:
        root = next(folder for folder in path.parents if (folder / "metrics.jsonl").exists())
        html = page.render([root])
        sound(html.isascii() and "<script>alert" not in html, "not escaped")

    def bench(path: Path) -> Any:
        found = comparison.read(path)
        json.dumps(comparison.compare(numbers, found, path))
        json.dumps(comparison.compare(found, numbers, path))

    number = {"median": 2.0, "low": 1.5, "high": 2.5, "count": 9, "unit": "ms", "better": "lower"}
    numbers = {"numbers": {"step": {"time": number, "memory": number | {"unit": "GiB"}}}, "subject": {"weights": "x"}}
    numbers |= {"machine": {"device_kind": "cpu", "versions": {"jax": "1"}}, "settings": {"data": {"dataset": "X"}}}
    about = {"settings": {key: prepared.data[key] for key in decoded_cache.MEANING}, "shape": [6, 8, 8, 3], "done": 6}
    about |= {"chunk": 4, "checksums": [int(hostile.zlib.crc32(images[i : i + 4].data)) for i in (0, 4)]}
    wanted = {"seed": 0, "sampling.method": "pc", "sampling.predictor": "heun", "step": 80}
    in_run = lambda folder: shutil.copytree(full, folder, dirs_exist_ok=True)
    npy = lambda folder: np.save(folder / "FOLDER_train_8x3.npy", images)
    splits = {"train": identity.of(images)}
    targets = [
        text("config.json", json.loads((full / "config.json").read_text()), configuration),
        text("metrics.jsonl", (full / "metrics.jsonl").read_bytes(), metrics),
        text("ledger.jsonl", good, lines),
        text("progress.json", {"seed": 0, "done": 4, "crc32": 9, "checksums": [1, 2]}, chunks),
        text("data.json", splits, recorded),
        text("FOLDER_train_8x3.json", about, copy, others=npy),
        text("kept.json", [10, 20, 30], kept),
        text("goodput.json", {"began": 1e9, "seconds": {"10": 5.0, "20": 9.5}, "ended": 1.1e9}, goodputs),
        text("samples.json", {"settings": wanted}, lambda path: generation.claim_folder(path.parent, wanted)),
        text("bench.json", numbers, bench),
    ]
    targets *= 8  # a page takes longer than all others
    sampled = {"settings": wanted, "nfe": 18.0}
    for name in [*run.JSON_FILES.values(), "heun/samples.json"]:
        value = sampled if name.startswith("heun") else json.loads((full / name).read_text())
        targets.append(text(name, value, report, others=in_run))
    return targets
