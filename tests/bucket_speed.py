"""What a bucket costs when each request takes 50 ms longer: training with checkpoints, and reading.

  python tests/bucket_speed.py --minutes 3.5

Reads shuffled batches of 128 PNG files of 32x32 in ArrayRecord: local, from gs:// directly, and copied first from gs://
and s3://. Then trains the digits' network on one core, with its workdir on the local disk and on gs:// in turn, and a
checkpoint every 60 s; the object store and its proxy have another core. Prints a line of JSON for each.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from support import buckets
from support.commands import tiny
from support.image_files import encode
from support.processes import ended, start

from score_st.data import pipeline
from score_st.runtime import storage

DELAY = 0.05  # seconds for each request
TRAIN = [
    "taskset",
    "-c",
    "0",
    sys.executable,
    "-m",
    "score_st.train",
    "--config",
    "vp/DIGITS/ddpmpp_nll_st",
    "--quiet",
]
TRAIN += [f"--config.{key}=False" for key in ("training.snapshot_sampling", "eval.enable_bpd")]
TRAIN += ["--config.training.eval_images=0", "--config.training.eval_freq=100000", "--config.training.log_freq=50"]


def train(workdir: str, steps: int, per_checkpoint: int, environment: dict) -> list[dict]:
    """Trains and returns the lines of the log."""
    more = {"n_iters": steps, "snapshot_freq": 100 * steps, "snapshot_freq_for_preemption": per_checkpoint}
    command = [*TRAIN, "--workdir", workdir, *(f"--config.training.{key}={value}" for key, value in more.items())]
    code, output = ended(start(environment, *command), timeout=1200)
    assert code == 0, output
    if storage.scheme(workdir):
        names = [item.path for item in storage.listing(workdir) if item.path.startswith("metrics.jsonl")]
        content = b"".join(storage.get_bytes(storage.join(workdir, name)) for name in names).decode()
    else:
        content = Path(workdir, "metrics.jsonl").read_text()
    return [json.loads(line) for line in content.splitlines()]


def speed(lines: list[dict]) -> float:
    """Steps/s over the run, all waits included, without the first line, which has the compilation."""
    steps = np.diff([line["step"] for line in lines[1:]])
    return float(steps.sum() / sum(n / line["steps_per_s"] for n, line in zip(steps, lines[2:], strict=True)))


def training(folder: Path, minutes: float) -> None:
    """Compares training on the local disk and in a bucket, in turn."""
    with buckets.serve("gs", folder / "objects") as store:
        os.sched_setaffinity(store.server.pid, {1})
        os.sched_setaffinity(0, {1})
        environment = os.environ | dict(JAX_COMPILATION_CACHE_DIR=str(folder / "cache"))
        trial = speed(train(str(folder / "trial"), 300, 10**6, environment))
        steps, per_checkpoint = int(trial * 60 * minutes), int(trial * 60)
        for turn in range(2):
            store.proxy.delay = 0
            local = speed(train(str(folder / f"local{turn}"), steps, per_checkpoint, environment))
            store.proxy.delay = DELAY
            lines = train(f"{store.url}/run{turn}", steps, per_checkpoint, environment)
            about = {"local": local, "gs": speed(lines), "ratio": speed(lines) / local, "steps": steps}
            about |= {"checkpoints": steps // per_checkpoint + 1, "storage_wait": lines[-1]["storage_wait"]}
            print(json.dumps({key: round(value, 3) for key, value in about.items()}), flush=True)


def reading(folder: Path, count: int = 2560) -> None:
    """Images/s of the ways to read."""
    files = folder / "records"
    files.mkdir()
    random = np.random.default_rng(0)
    writer = ArrayRecordWriter(str(files / "a.array_record"), "group_size:1")
    for coarse in random.integers(0, 256, (count, 4, 4, 3), np.uint8):
        writer.write(encode(coarse.repeat(8, 0).repeat(8, 1)))
    writer.close()
    more = dict(data__dataset="ARRAYRECORD", data__num_channels=3, data__num_levels=256, data__memory_gb=0)

    def read(name: str, place: str | Path, cache: str | Path = "", steps: int = 16) -> None:
        config = tiny(data__dir=place, data__image_size=32, data__local_cache=cache, **more)
        began = time.perf_counter()
        images = pipeline.load(config, "train")
        opened, began = time.perf_counter() - began, time.perf_counter()
        images_read = sum(map(len, pipeline.Stream(images, 128, 0).batches(0, steps)))
        rate = images_read / (time.perf_counter() - began)
        print(json.dumps({"way": name, "seconds_to_open": round(opened, 2), "images_per_s": round(rate)}), flush=True)

    read("local", files)
    for scheme in ("gs", "s3"):
        with buckets.serve(scheme, folder / f"data_{scheme}") as store:
            storage.put(files / "a.array_record", f"{store.url}/records/a.array_record")
            store.proxy.delay = DELAY
            if scheme == "gs":
                read("gs:// directly, a batch at a time", f"{store.url}/records")
            read(f"{scheme}:// copied first", f"{store.url}/records", folder / f"cache_{scheme}")


def main() -> None:
    """Prints all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.5, help="of each training run; 0: none")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bucket_speed_"))
    reading(folder)
    if arguments.minutes:
        training(folder, arguments.minutes)


if __name__ == "__main__":
    main()
