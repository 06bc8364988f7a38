"""Hostile inputs for every reader of files and of the port where processes meet, drawn by Hypothesis.

  python tests/fuzz.py --inputs 10000 --seed 0
  python tests/fuzz.py --only npz,json --inputs 1000

An input is a damaged copy of a valid file, or one built to be wrong. It is accepted, or refused as the reader's
docstring says, in one line. Anything else is wrong: another exception, other values under a checksum that fits the
valid file alone, 5 seconds of the processor or 10 minutes of waiting, 256 MiB of memory, a signal, code of the input
that runs. The first input of each fault is kept. The exit code is 1 if anything is wrong.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import json
import mmap
import os
import pickle
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st
from support import hostile, image_files, workdirs
from support.commands import tiny
from support.official import CHECKPOINT, FIXTURES

from score_st.config import ConfigError

CPU_SECONDS, WALL_SECONDS = 5.0, 600.0  # others may use the processor
GROWTH, LIMIT = 2**18, 3 * 2**30  # KiB that an input may need, bytes that it may ask for
Read = Callable[[Path], Any]


class Hang(BaseException):
    """An input takes too long."""


class Silent(Exception):
    """An input is accepted that should not be."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
      name: of the reader.
      file: the path of its file, below a folder.
      valid: contents that it accepts.
      read: reads the file.
      built: draws inputs that are no damaged copies.
      checksum: whether the format promises that a damaged copy is refused, or read as if intact.
      refusals: what the reader raises for a file that it refuses.
      others: files that have to be beside it.
    """

    name: str
    file: str
    valid: list[bytes]
    read: Read
    built: st.SearchStrategy[bytes] | None = None
    checksum: bool = False
    refusals: tuple[type[Exception], ...] = (ConfigError,)
    others: Callable[[Path], None] = lambda folder: None

    def inputs(self) -> st.SearchStrategy[tuple[bool, bytes]]:
        """Draws whether an input is a damaged copy, and the input."""
        copies = st.tuples(st.just(True), hostile.mutated(self.valid))
        return copies if self.built is None else st.one_of(copies, st.tuples(st.just(False), self.built))


def npz_of(save: Callable = np.savez_compressed, **arrays: np.ndarray) -> bytes:
    save(stream := io.BytesIO(), **arrays)
    return stream.getvalue()


def sound(condition: Any, what: str) -> None:
    if not condition:
        raise Silent(what)


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


def touch(tree: Any) -> None:
    """Reads every number of a tree, and refuses what no checkpoint has."""
    if isinstance(tree, dict | list | tuple):
        for item in tree.values() if isinstance(tree, dict) else tree:
            touch(item)
    elif isinstance(tree, np.ndarray):
        tree.tobytes()
    else:
        sound(tree is None or isinstance(tree, bool | int | float | str | bytes), f"a {type(tree).__name__}")


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


KINDS: dict[str, Callable[[str], list[Target]]] = {
    "npz": lambda canary: npz_targets(),
    "idx": lambda canary: idx_targets(),
    "mat": lambda canary: mat_targets(),
    "pickle": pickle_targets,
    "json": lambda canary: json_targets(),
    "coordinator": lambda canary: [],
}


def same(first: Any, second: Any) -> bool:
    """Whether two trees of arrays are the same; the first may lack some."""
    import jax

    if isinstance(first, dict):
        return isinstance(second, dict) and all(key in second and same(first[key], second[key]) for key in first)
    leaves = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(leaves[0]) == len(leaves[1]) and all(
        np.asarray(a).dtype == np.asarray(b).dtype and np.array_equal(a, b) for a, b in zip(*leaves, strict=True)
    )


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raises Hang after some seconds of the processor, and Silent for memory that was needed."""

    def late(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, late)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS + 2)  # ends the process if it is deep in C
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        if grown > GROWTH:
            raise Silent(f"needs {grown >> 10} MiB")


class Counts:
    """Counts in memory that a child shares with its parent: tried, accepted, refused, wrong, when the last began."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 40)

    def __getitem__(self, place: int) -> int:
        return struct.unpack_from("<q", self.memory, 8 * place)[0]

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("<q", self.memory, 8 * place, value)


TRIED, ACCEPTED, REFUSED, WRONG, BEGAN = range(5)


def fault(error: BaseException) -> str:
    """Names an exception by its type and the last line of the package that it went through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/score_st/" in frame.filename] or frames
    at = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    text = "" if isinstance(error, Hang) else f": {' '.join(str(error).split())[:100]}"
    return f"{type(error).__name__} at {at}{text}"


class Child:
    """Tries inputs of one kind in a process of its own."""

    def __init__(self, kind: str, folder: Path, counts: Counts) -> None:
        self.kind, self.folder, self.counts = kind, folder, counts
        self.canary = str(folder / "canary")
        self.faults = collections.Counter[str]()

    def note(self, target: str, problem: str, path: Path | None) -> None:
        """Counts a fault, and keeps the first input of each."""
        self.counts[WRONG] += 1
        key = f"{target}: {problem}"
        place = problem.partition(": ")[0]
        self.faults[place] += 1
        if self.faults[place] == 1:
            name = hashlib.md5(key.encode()).hexdigest()[:8]
            if path is not None and path.exists():
                shutil.copy(path, self.folder.parent / f"{self.kind}_{name}_{path.name}")
            print(f"WRONG {self.kind}, {key}: {self.kind}_{name}", flush=True)

    def attempt(self, target: Target, copy: bool, content: bytes, expected: list[Any]) -> None:
        """Writes an input, reads it and counts what comes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        path = self.folder / target.file
        path.parent.mkdir(parents=True)
        target.others(self.folder)
        path.write_bytes(content)
        (self.folder.parent / f"{self.kind}.current").write_text(f"{target.name}\0{path}")
        kept = self.folder.parent / f"{self.kind}.input"
        kept.write_bytes(content)  # a reader may write the file
        self.counts[BEGAN] = time.monotonic_ns()
        try:
            with limited():
                value = target.read(path)
            if copy and target.checksum and value is not None and not any(same(value, one) for one in expected):
                raise Silent("reads other values from a damaged copy than from the valid file")
            self.counts[ACCEPTED] += 1
        except target.refusals as error:
            if "\n" in str(error) or len(str(error)) > 5000:
                self.note(target.name, f"a message of {len(str(error))} characters, not one line {fault(error)}", kept)
            self.counts[REFUSED] += 1
        except (Exception, Hang) as error:
            self.note(target.name, fault(error), kept)
        self.counts[BEGAN] = 0
        self.counts[TRIED] += 1

    def run(self, inputs: int, seed: int) -> None:
        """Tries some inputs."""
        warnings.simplefilter("ignore")
        if self.kind == "coordinator":
            strategy, act = meetings(), self.meet
        else:
            targets = KINDS[self.kind](self.canary)
            unique = {key: self.expected(one) for key, one in {id(one): one for one in targets}.items()}
            expected = [unique[id(target)] for target in targets]
            numbers = st.integers(0, len(targets) - 1)
            strategy = numbers.flatmap(lambda n: st.tuples(st.just(n), targets[n].inputs()))
            act = lambda drawn: self.attempt(targets[drawn[0]], *drawn[1], expected[drawn[0]])
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, used + LIMIT))

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=inputs,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy)
        def test(drawn: Any) -> None:
            act(drawn)

        test()

    def expected(self, target: Target) -> list[Any]:
        """What a reader makes of the valid files."""
        values: list[Any] = []
        for content in target.valid if target.checksum else ():
            shutil.rmtree(self.folder, ignore_errors=True)
            path = self.folder / target.file
            path.parent.mkdir(parents=True)
            target.others(self.folder)
            path.write_bytes(content)
            with contextlib.suppress(*target.refusals):
                values.append(target.read(path))
        assert values or not target.checksum, target.name
        return values

    def meet(self, drawn: Any) -> None:
        """Has strangers come to the port of process 0 beside process 1."""
        self.counts[BEGAN] = time.monotonic_ns()
        (self.folder.parent / "coordinator.input").write_text(repr(drawn))
        try:
            with limited():
                meeting(*drawn)
            self.counts[ACCEPTED] += 1
        except (Exception, Hang) as error:
            self.note("port", fault(error), self.folder.parent / "coordinator.input")
        self.counts[BEGAN] = 0
        self.counts[TRIED] += 1


PORTS = iter(range(20_000, 32_000))


@st.composite
def meetings(draw) -> tuple[list[tuple[bytes, str]], list[bytes]]:
    """What strangers send to process 0 and how they end, and what another program answers process 1."""
    from score_st.runtime import rendezvous

    right = {"token": rendezvous.token(), "process": 1, "host": "h", "settings": {"seed": 0}}
    answer = {"token": rendezvous.token(), "verdict": None}
    wrong = right | {"token": "0" * 64}

    def lines(message: dict) -> st.SearchStrategy[bytes]:
        text = rendezvous.line(message)
        damaged = hostile.changed({key: message[key] for key in message if key != "token"}).map(
            lambda tree: (
                json.dumps({"token": message["token"], **tree} if isinstance(tree, dict) else tree).encode() + b"\n"
            )
        )
        return st.one_of(hostile.mutated([text]), damaged, st.sampled_from([text, text[:-1], text * 2, b"\n" + text]))

    http = st.sampled_from(
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n", b"\0" * 2**20]
    )
    odd = st.sampled_from(hostile.ODD).map(lambda text: text + b"\n")
    sent = st.one_of(
        lines(wrong), st.binary(max_size=60), odd, http, hostile.trees.map(lambda t: json.dumps(t).encode() + b"\n")
    )
    strangers = st.lists(st.tuples(sent, st.sampled_from(("close", "reset", "hold", "half"))), min_size=1, max_size=4)
    answers = st.one_of(st.just([]), st.just([]), st.lists(st.one_of(sent, lines(answer)), min_size=1, max_size=1))
    return draw(strangers), draw(answers)


def meeting(strangers: list[tuple[bytes, str]], answers: list[bytes]) -> None:
    """Process 0 and 1 meet though strangers come first; process 1 meets another program that answers."""
    from score_st.runtime import rendezvous

    own, ends, problems = {"host": "h", "settings": {"seed": 0}}, list[socket.socket](), list[BaseException]()
    port = next(PORTS)
    address = f"127.0.0.1:{port}"

    def first() -> None:
        try:
            rendezvous.gather(address, 2, own | {"process": 0}, 20)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    for content, end in strangers:
        stranger = connected(port)
        with contextlib.suppress(OSError):
            stranger.settimeout(5)
            stranger.sendall(content)
            if end == "half":
                stranger.shutdown(socket.SHUT_WR)
            if end == "reset":
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.append(stranger)
        if end in ("close", "reset"):
            stranger.close()
    try:
        agreed = rendezvous.greet_first(address, 2, own | {"process": 1}, 20)
        thread.join(20)
        sound(agreed and not thread.is_alive() and not problems, f"process 1 is not let in: {problems}")
    finally:
        for stranger in ends:
            stranger.close()
    for content in answers:
        with socket.create_server(("127.0.0.1", 0)) as server:
            threading.Thread(target=impostor, args=(server, content)).start()
            try:
                result = rendezvous.greet_first(f"127.0.0.1:{server.getsockname()[1]}", 2, own | {"process": 1}, 0.25)
                sound(type(result) is bool, "neither True nor False")
            except rendezvous.Missing as error:
                sound("\n" not in str(error), "not one line")


def connected(port: int) -> socket.socket:
    for _ in range(2000):
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), 5)
        time.sleep(0.005)
    raise Silent("nobody listens")


def impostor(server: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError), server.accept()[0] as connection:
        connection.settimeout(2)
        connection.recv(2**16)
        connection.sendall(content)


def child(kind: str, folder: Path, counts: Counts, inputs: int, seed: int) -> int:
    """Starts a process that tries inputs; returns its number."""
    if pid := os.fork():
        return pid
    try:
        Child(kind, folder / kind, counts).run(inputs, seed)
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


class Run:
    """All inputs of a kind; a process that a signal ends, or that hangs, is followed by another."""

    def __init__(self, kind: str, folder: Path, inputs: int, seed: int) -> None:
        self.kind, self.folder, self.inputs, self.seed = kind, folder, inputs, seed
        self.counts, self.began, self.shown, self.deaths = Counts(), time.monotonic(), time.monotonic(), 0
        self.seconds: float | None = None  # once all is done
        self.start()

    def start(self) -> None:
        left = self.inputs - self.counts[TRIED]
        self.pid = child(self.kind, self.folder, self.counts, left, self.seed + 1000 * self.deaths)

    def poll(self) -> None:
        """Says how far it is, ends a process that hangs, and starts another after one that has died."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        started, now = self.counts[BEGAN], time.monotonic()
        if not done:
            if started and time.monotonic_ns() - started > WALL_SECONDS * 1e9:
                os.kill(self.pid, signal.SIGKILL)
            if now > self.shown + 30:
                self.shown = now
                so_far = f"{self.counts[TRIED]:,} of {self.inputs:,} in {now - self.began:.0f} s"
                print(f"{self.kind}: {so_far}, {self.counts[WRONG]} wrong", flush=True)
            return
        code = os.waitstatus_to_exitcode(status)
        if code:
            self.died(code)
        if code < 0 and self.deaths < 20 and self.counts[TRIED] < self.inputs:
            self.start()
        else:
            self.seconds = now - self.began

    def died(self, code: int) -> None:
        """Counts an input that has ended its process, and keeps it."""
        self.deaths += 1
        self.counts[TRIED], self.counts[WRONG], self.counts[BEGAN] = self.counts[TRIED] + 1, self.counts[WRONG] + 1, 0
        current, content = (self.folder / f"{self.kind}.{name}" for name in ("current", "input"))
        name, _, path = current.read_text().partition("\0") if current.exists() else (self.kind, "", "input")
        how = "hangs" if -code in (signal.SIGKILL, signal.SIGVTALRM) else f"ends with {code}"
        kept = self.folder / f"{self.kind}_death{self.deaths}_{Path(path).name}"
        if content.exists():
            shutil.copy(content, kept)
        print(f"WRONG {self.kind}, {name}: the process {how}: {kept.name}", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--out", type=Path, help="a folder for inputs that are wrong")
    arguments = parser.parse_args()
    kinds = arguments.only.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="fuzz_"))
    folder.mkdir(parents=True, exist_ok=True)
    import score_st.api
    import score_st.convert  # noqa: F401

    runs = [Run(kind, folder, arguments.inputs, arguments.seed) for kind in kinds]
    while any(run.seconds is None for run in runs):
        for run in runs:
            if run.seconds is None:
                run.poll()
        time.sleep(0.05)
    rows = [
        (run.kind, *(run.counts[place] for place in (TRIED, ACCEPTED, REFUSED, WRONG)), run.seconds) for run in runs
    ]
    print(f"{'kind':12} {'inputs':>8} {'accepted':>9} {'refused':>8} {'wrong':>6} {'seconds':>8}")
    for kind, *numbers, seconds in rows:
        print(f"{kind:12} {numbers[0]:8,} {numbers[1]:9,} {numbers[2]:8,} {numbers[3]:6,} {seconds:8.0f}")
    wrong = sum(row[4] for row in rows) or any(row[1] < arguments.inputs for row in rows)
    if wrong:
        print(f"inputs that are wrong are in {folder}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
