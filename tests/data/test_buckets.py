"""Data in buckets: the same images in the same order as local ones."""

import json
import multiprocessing

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from support import buckets
from support.commands import tiny
from support.image_files import encode

from score_st.benchmarking import formats
from score_st.config import ConfigError
from score_st.data import __main__ as data_command
from score_st.data import pipeline
from score_st.runtime import local_cache, storage

SETTINGS = dict(data__image_size=8, data__num_channels=3, data__num_levels=256)


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request, tmp_path_factory):
    with buckets.serve(request.param, tmp_path_factory.mktemp("objects")) as store:
        yield store


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)


def upload(folder, url):
    for path in folder.iterdir():
        storage.put(path, storage.join(url, path.name))


def write_records(folder, images):
    folder.mkdir()
    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
    for image in images:
        writer.write(encode(image))
    writer.close()


def batches(config):
    stream = pipeline.Stream(pipeline.load(config, "train"), 7, seed=3)
    return np.stack(list(stream.batches(0, 5)))


@pytest.mark.parametrize("cached", [False, True])
def test_records_are_those_of_local_files(store, images, tmp_path, cached):
    write_records(tmp_path / "local", images)
    url = f"{store.url}/records{cached:d}"
    upload(tmp_path / "local", url)
    cache = tmp_path / "cache" if cached or store.scheme == "s3" else ""
    settings = SETTINGS | dict(data__dataset="ARRAYRECORD", data__memory_gb=0)
    local = batches(tiny(data__dir=tmp_path / "local", **settings))
    assert np.array_equal(local, batches(tiny(data__dir=url, data__local_cache=cache, **settings)))
    copies = [path for path in tmp_path.rglob("cache/**/*.array_record")]
    assert len(copies) == bool(cache)


@pytest.mark.parametrize("name", ["zip of PNG", "tar shards of PNG", "Parquet of PNG"])
def test_archives_are_those_of_local_files(store, images, tmp_path, name):
    """A folder of them, and a single file."""
    (tmp_path / "local").mkdir()
    write = next(write for kind, write in formats.WRITERS.items() if kind.startswith(name))
    dataset = write(tmp_path / "local", images)["dataset"]
    url, settings = f"{store.url}/{dataset.lower()}", SETTINGS | dict(data__dataset=dataset)
    upload(tmp_path / "local", url)
    local = tiny(data__dir=tmp_path / "local", **settings)
    (path,) = (tmp_path / "local").iterdir()
    for place in (url, f"{url}/{path.name}"):
        remote = tiny(data__dir=place, data__local_cache=tmp_path / "cache", **settings)
        assert np.array_equal(batches(local), batches(remote))


def test_prepared_copies_go_to_a_bucket_and_come_back(store, images, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(images):
        (folder / f"{i:02d}.png").write_bytes(encode(image))
    options = {"dataset": "FOLDER", "dir": folder, "image_size": 8, "num_channels": 3, "num_levels": 256}
    argv = [f"--config.data.{key}={value}" for key, value in options.items()]
    url = f"{store.url}/prepared"
    data_command.main(["--config", "vp/DIGITS/ddpmpp_nll_st", *argv, "--to", url, "--workdir", str(tmp_path),
                       "--config.training.batch_size=16"])  # fmt: skip
    names = {item.path for item in storage.listing(url)}
    assert names == {f"FOLDER_{split}_8x3.{kind}" for split in ("train", "test") for kind in ("npy", "json")}
    settings = SETTINGS | dict(data__dataset="FOLDER", data__dir=folder)
    remote = tiny(data__prepared=url, data__local_cache=tmp_path / "cache", **settings)
    assert np.array_equal(batches(tiny(**settings)), batches(remote))
    assert json.loads((tmp_path / f"data_{'FOLDER'}.json").read_text())["train"]["count"] == 54


def test_a_copy_is_made_once_resumed_and_kept_up_to_date(store, tmp_path):
    url = f"{store.url}/copied"
    for i in range(5):
        storage.put_bytes(bytes([i]) * 100, f"{url}/{i}")
    path = local_cache.copied(url, tmp_path)
    assert path == tmp_path / store.scheme / "bucket/copied"
    times = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    assert [(path / str(i)).read_bytes() for i in range(5)] == [bytes([i]) * 100 for i in range(5)]
    (path / "2").unlink()  # what a killed process had not fetched
    storage.put_bytes(b"x" * 100, f"{url}/3")  # another content of the same size
    local_cache.copied(url, tmp_path)
    again = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    assert (path / "2").read_bytes() == bytes([2]) * 100 and (path / "3").read_bytes() == b"x" * 100
    assert {name for name in again if again[name] == times.get(name)} == {"0", "1", "4"}
    with pytest.raises(FileNotFoundError):
        local_cache.copied(f"{store.url}/nothing", tmp_path)


def test_processes_of_a_host_share_a_copy(store, tmp_path):
    url = f"{store.url}/shared"
    for i in range(20):
        storage.put_bytes(bytes([i]) * 1000, f"{url}/{i}")
    context, folder = multiprocessing.get_context("spawn"), tmp_path / "cache"
    # Under `pytest` alone a fresh process finds the package but not this file.
    pair = [context.Process(target=local_cache.copied, args=(url, folder)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(timeout=60)
    assert [process.exitcode for process in pair] == [0, 0]
    assert len([path for path in (folder / store.scheme / "bucket/shared").iterdir()]) == 20


def test_a_missing_data_set_is_one_line(store, tmp_path):
    config = tiny(data__dir=f"{store.url}/missing", data__dataset="CIFAR10", data__local_cache=tmp_path, **SETTINGS)
    with pytest.raises(ConfigError, match=f"{store.url}/missing.*cifar-10-python"):
        pipeline.load(config, "train")
