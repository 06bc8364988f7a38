"""data.download: fetches the files of a release by TensorFlow Datasets, which checks them (without TensorFlow)."""

import os
import shutil
from pathlib import Path

from ml_collections import ConfigDict

from score_st.config import ConfigError
from score_st.data.datasets import DATASETS
from score_st.runtime import storage


def fetch(config: ConfigDict) -> None:
    """Downloads the files of data.dataset and unpacks them into data.dir; other files there are left alone.

    Raises:
      ConfigError: data.dir is empty, the data set has to be fetched by hand, or a download fails or is damaged.
    """
    name, root = config.data.dataset, Path(config.data.dir)
    release = DATASETS.choose(name).release
    if storage.scheme(config.data.dir):
        raise ConfigError(f"config.data.download: needs a local data.dir, not {config.data.dir}; upload it afterwards")
    if not config.data.dir:
        raise ConfigError("config.data.download: needs data.dir, the folder that the files go to")
    if release is None:
        others = ", ".join(key for key, dataset in DATASETS.items() if dataset.release)
        raise ConfigError(f"config.data.download: {name} has to be fetched by hand; it can download {others}")
    import tensorflow_datasets as tfds

    urls = tfds.builder_cls(release.builder).url_infos
    infos = {url: info for url, info in urls.items() if info.filename in release.files}
    try:
        root.mkdir(parents=True, exist_ok=True)
        manager = tfds.download.DownloadManager(
            download_dir=root / "downloads",
            url_infos=infos,
            dataset_name=release.builder,
            force_checksums_validation=True,
        )
        for url, path in manager.download({url: url for url in infos}).items():
            unpack(Path(path), root, infos[url].filename)
    except Exception as error:  # whatever a network or a disk does
        cause = " ".join(str(error).split())
        raise ConfigError(
            f"config.data.download: {name} can't be fetched ({type(error).__name__}: {cause})"
        ) from error
    shutil.rmtree(root / "downloads", ignore_errors=True)


def unpack(path: Path, root: Path, name: str) -> None:
    """Unpacks a downloaded archive into `root`; moves any other file there under its `name`."""
    if name.endswith(".tar.gz"):
        shutil.unpack_archive(path, root, "gztar", filter="data")
    elif name.endswith(".zip"):
        shutil.unpack_archive(path, root, "zip")
    else:
        os.replace(path, root / name)
