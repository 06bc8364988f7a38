"""Long evaluations: a function over all images on all devices, its results written down batch by batch.

A run that was killed goes on from what is written; what it leaves at the end is what an uninterrupted run leaves.
"""

import importlib.metadata
import json
import subprocess
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from score_st.data import pipeline
from score_st.runtime.workdir import write_text

PACKAGES = ("score_st", "jax", "jaxlib", "flax", "diffrax", "numpy")


class Ledger:
    """Results by job, a JSON object a line: first the settings, then each job with its seconds and its results.

    Args:
      path: the file; lines of other settings are dropped, and so is a last line that was cut off.
      settings: all that the results depend on, as JSON has it.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.seconds, self.lines = path, {}, {}
        header = json.dumps({"settings": settings})
        lines = path.read_text().splitlines() if path.exists() else []
        if lines[:1] == [header]:
            for line in lines[1:]:
                try:
                    self._add(json.loads(line))
                except ValueError:  # only the last line can be torn
                    break
        multihost_utils.sync_global_devices("ledger read")
        self.writes = jax.process_index() == 0
        if self.writes:
            write_text(path, "".join(f"{line}\n" for line in (header, *map(json.dumps, self.lines.values()))))

    def _add(self, line: dict):
        job = tuple(line["job"])
        self.lines[job], self.seconds[job] = line, line["seconds"]

    def __contains__(self, job: tuple) -> bool:
        return job in self.lines

    def __call__(self, job: tuple, compute: Callable[[], dict]) -> dict:
        """The arrays of `job`, a tuple of names and numbers: as written, or else computed and written."""
        if job not in self.lines:
            began = time.perf_counter()
            result = {key: np.asarray(value).tolist() for key, value in compute().items()}
            self._add({"job": job, "seconds": round(time.perf_counter() - began, 4), "result": result})
            if self.writes:
                with self.path.open("a") as file:
                    file.write(json.dumps(self.lines[job]) + "\n")
        return {key: np.asarray(value) for key, value in self.lines[job]["result"].items()}


class Runner:
    """Runs a function of one batch over all images, on all devices, each image once.

    Args:
      images: uint8 [N, H, W, C], the same on every process.
      batch_size: a multiple of the number of devices times `group`.
      group: images computed together on a device; 0 is all of its share.
    """

    def __init__(self, params, images: np.ndarray, batch_size: int, seed: int, ledger: Ledger, mesh, group: int = 0):
        self.images, self.batch_size, self.seed, self.ledger = images, batch_size, seed, ledger
        self.devices = list(mesh.devices.flat)
        self.group = group or batch_size // len(self.devices)
        params = jax.tree.map(np.asarray, params)
        here = [device for device in self.devices if device.process_index == jax.process_index()]
        self.params = {device: jax.device_put(params, device) for device in here}
        self.pool = ThreadPoolExecutor(len(here))

    def batch(self, function: Callable, columns: list[np.ndarray], *arguments) -> dict[str, np.ndarray]:
        """The function's results for one batch: each group of images by itself, on the next device.

        No device waits for another, and a group's program is the same on any number of devices, and so are its
        results, to the bit. An adaptive solver needs that: a rounding error becomes other steps.
        """
        groups = [[column[i : i + self.group] for column in columns] for i in range(0, self.batch_size, self.group)]
        shares = np.array_split(np.arange(len(groups)), len(self.devices))
        precision = jax.config.jax_default_matmul_precision  # a thread starts without it

        def on(device):
            put = lambda i: jax.device_put(groups[i], device)
            with jax.default_matmul_precision(precision):
                return [function(self.params[device], *put(i), *arguments) for i in shares[self.devices.index(device)]]

        # in threads, since each device's first call compiles
        found = [part for parts in self.pool.map(on, self.params) for part in parts]
        results = jax.tree.map(lambda *a: np.concatenate([np.asarray(part) for part in a]), *found)
        return multihost_utils.process_allgather(results, tiled=True) if jax.process_count() > 1 else results

    def __call__(self, name: str, function: Callable, *arguments, per_image=(), repeat=0, progress=None, keep=True):
        """The function's arrays [B] over all images [N], as float64, int or bool.

        Args:
          name: of the job, with `repeat`.
          function: jitted, of (params, images, indices, *per_image, *arguments, key).
          per_image: arrays [N], cut like the images.
          repeat: another one gives new noise.
          progress: called on one process with the number of images done and the results so far, batch by batch.
          keep: the batches in the ledger.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), repeat)
        indices = np.arange(len(self.images))
        columns = [pipeline.padded(array, self.batch_size) for array in (self.images, indices, *per_image)]
        parts, done = [], 0
        for number, batch in enumerate(zip(*columns, strict=True)):
            mask = batch[0][1]

            def compute(batch=batch, mask=mask):
                output = self.batch(function, [array for array, _ in batch], *arguments, key)
                return {name: np.asarray(value)[mask] for name, value in output.items()}

            job = (name, repeat, number)
            known = job in self.ledger
            parts.append(self.ledger(job, compute) if keep else compute())
            done += int(mask.sum())
            if progress and self.ledger.writes and not (known and done < len(self.images)):
                progress(done, parts)
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def seconds_per_image(self, name: str) -> float | None:
        """Of the jobs `name`, with compilation."""
        seconds = [value for job, value in self.ledger.seconds.items() if job[0] == name]
        repeats = len({job[1] for job in self.ledger.seconds if job[0] == name})
        return sum(seconds) / (repeats * len(self.images)) if seconds else None


def checksum(tree) -> int:
    """CRC-32 of all arrays of a tree."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return crc


def provenance() -> dict:
    """The versions of the packages, and the git revision of the package where it is in a checkout."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    here = Path(__file__)
    git = lambda *words: subprocess.run(["git", "-C", here.parent, *words], capture_output=True, text=True)
    try:
        tracked = git("ls-files", "--error-unmatch", here.name).returncode == 0
        revision = git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").stdout.strip()
    except OSError:  # no git
        tracked, revision = False, ""
    return {"versions": versions, "git_revision": revision if tracked and revision else None}
