"""A function over many images on all devices of a mesh, resumed batch by batch.

What a killed and resumed run leaves at the end is what an uninterrupted run leaves.
"""

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from score_st.data import pipeline
from score_st.data.images import Images
from score_st.runtime import profiling
from score_st.runtime.resumable import JsonLines, Result


def open_results(path: Path, settings: dict) -> JsonLines:
    """Returns the stored results of `settings`, after all processes have read them; process 0 adds to the file."""
    results = JsonLines(path, settings, writes=jax.process_index() == 0)
    multihost_utils.sync_global_devices("results read")
    return results


class BatchRunner:
    """Runs a function of one batch on all devices, in groups of images that are computed together.

    No device waits for another. The program of a group is the same on any number of devices, and so are its results,
    to the bit. An adaptive solver needs that: a rounding error becomes another sequence of steps.
    """

    def __init__(
        self, params: Any, batch_size: int, mesh: Mesh, group: int = 0, trace: profiling.BatchTrace | None = None
    ) -> None:
        """Copies the parameters to each device of this process.

        Args:
          params: the weights, the same on every process.
          batch_size: images of a batch over all devices, a multiple of their number times `group`.
          mesh: the devices.
          group: images computed together on a device; 0 is all of its share of the batch.
          trace: of one batch, for --profile.
        """
        self.trace = trace
        self.batch_size, self.devices = batch_size, list(mesh.devices.flat)
        self.group = group or batch_size // len(self.devices)
        params = jax.tree.map(np.asarray, params)
        local = [device for device in self.devices if device.process_index == jax.process_index()]
        self.params = {device: jax.device_put(params, device) for device in local}
        self.pool = ThreadPoolExecutor(len(local))

    def batch(self, function: Callable, columns: Sequence[np.ndarray], *arguments: Any) -> dict[str, np.ndarray]:
        """Returns the function's arrays [B] for one batch.

        Args:
          function: jitted, of (params, *columns of a group, *arguments).
          columns: arrays [B, ...] that are divided among the groups.
          *arguments: what all groups have in common.
        """
        starts = range(0, self.batch_size, self.group)
        groups = [[column[start : start + self.group] for column in columns] for start in starts]
        shares = np.array_split(np.arange(len(groups)), len(self.devices))
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # a new thread starts with the default

        def compute_share(device: jax.Device) -> list[dict]:
            share = shares[self.devices.index(device)]
            with jax.default_matmul_precision(precision):
                return [function(self.params[device], *jax.device_put(groups[i], device), *arguments) for i in share]

        with self.trace.batch() if self.trace else contextlib.nullcontext():
            # in threads, since each device compiles on its first call
            outputs = [output for share in self.pool.map(compute_share, self.params) for output in share]
            results = jax.tree.map(lambda *arrays: np.concatenate([np.asarray(array) for array in arrays]), *outputs)
        return multihost_utils.process_allgather(results, tiled=True) if jax.process_count() > 1 else results


class ImageRunner(BatchRunner):
    """Runs a function over all images of a data set, each image once, and stores its results."""

    def __init__(
        self,
        params: Any,
        images: Images,
        batch_size: int,
        seed: int,
        results: JsonLines,
        mesh: Mesh,
        group: int = 0,
        trace: profiling.BatchTrace | None = None,
    ) -> None:
        """See `BatchRunner`.

        Args:
          params: the weights, the same on every process.
          images: the same on every process.
          batch_size: a multiple of the number of devices times `group`.
          seed: all noise derives from it.
          results: where the batches are stored.
          mesh: the devices.
          group: images computed together on a device; 0 is all of its share of the batch.
          trace: of one batch, for --profile.
        """
        super().__init__(params, batch_size, mesh, group, trace)
        self.images, self.seed, self.results = images, seed, results

    def __call__(
        self,
        name: str,
        function: Callable,
        *arguments: Any,
        per_image: Sequence[np.ndarray] = (),
        repeat: int = 0,
        progress: Callable[[int, list[Result]], None] | None = None,
        store: bool = True,
    ) -> dict[str, np.ndarray]:
        """Returns the function's arrays over all images [N], as float64, int64 or bool.

        Args:
          name: of the jobs (name, repeat, number of the batch).
          function: jitted, of (params, images, indices, *per_image, *arguments, key).
          *arguments: what all images have in common.
          per_image: arrays [N] that are divided like the images.
          repeat: another number gives other noise.
          progress: called on one process after each batch with the number of images and the results up to there.
          store: whether to store the batches.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), repeat)
        indices = np.arange(len(self.images))
        columns = [pipeline.padded(array, self.batch_size) for array in (self.images, indices, *per_image)]
        parts: list[Result] = []
        done = 0
        if self.trace:
            numbers = range(-(-len(self.images) // self.batch_size))
            self.trace.expect(sum((name, repeat, number) not in self.results for number in numbers))
        for number, batch in enumerate(zip(*columns, strict=True)):
            mask = batch[0][1]

            def compute(batch: Sequence = batch, mask: np.ndarray = mask) -> Result:
                output = self.batch(function, [array for array, _ in batch], *arguments, key)
                return {name: np.asarray(value)[mask] for name, value in output.items()}

            job = (name, repeat, number)
            stored = job in self.results
            count = int(mask.sum())
            fits = lambda result, count=count: all(np.shape(a)[:1] == (count,) for a in result.values())
            parts.append(self.results(job, compute, fits) if store else compute())
            done += count
            if progress and self.results.writes and not (stored and done < len(self.images)):
                progress(done, parts)
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def seconds_per_image(self, name: str) -> float | None:
        """Returns the seconds per image of the jobs `name`, compilation included; None if there was no such job."""
        seconds = {job: value for job, value in self.results.seconds.items() if job[0] == name}
        repeats = len({job[1] for job in seconds})
        return sum(seconds.values()) / (repeats * len(self.images)) if seconds else None
