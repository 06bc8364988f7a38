"""data.download: the files of a release, fetched and checked by TensorFlow Datasets (without TensorFlow)."""

import os
import shutil
from pathlib import Path

from score_st.config import ConfigError

# its builder there, and which of its files are wanted
RELEASES = {
    "FASHION_MNIST": ("fashion_mnist", ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz")),
    "CIFAR10": ("cifar10", ("cifar-10-binary.tar.gz",)),
    "SVHN": ("svhn_cropped", ("train_32x32.mat", "test_32x32.mat")),
    "STL10": ("stl10", ("stl10_binary.tar.gz",)),
    "CELEBA": ("celeb_a", ("list_eval_partition.txt", "img_align_celeba.zip")),
}


def fetch(config):
    """Downloads the files of data.dataset and unpacks them into data.dir; what is there already is left alone.

    Raises:
      ConfigError: no data.dir, a set that has to be fetched by hand, or a file that does not come as it should.
    """
    name, root = config.data.dataset, Path(config.data.dir)
    if not config.data.dir:
        raise ConfigError("config.data.download: needs data.dir, the folder that the files go to")
    if name not in RELEASES:
        raise ConfigError(f"config.data.download: {name} is fetched by hand; the others are {', '.join(RELEASES)}")
    import tensorflow_datasets as tfds

    builder, wanted = RELEASES[name]
    infos = {url: info for url, info in tfds.builder_cls(builder).url_infos.items() if info.filename in wanted}
    try:
        root.mkdir(parents=True, exist_ok=True)
        manager = tfds.download.DownloadManager(
            download_dir=root / "downloads", url_infos=infos, dataset_name=builder, force_checksums_validation=True
        )
        for url, path in manager.download({url: url for url in infos}).items():
            place(Path(path), root, infos[url].filename)
    except Exception as error:  # whatever a network or a disk does
        said = " ".join(str(error).split())
        raise ConfigError(f"config.data.download: {name} can't be fetched ({type(error).__name__}: {said})") from error
    shutil.rmtree(root / "downloads", ignore_errors=True)


def place(path: Path, root: Path, name: str):
    """Unpacks a downloaded archive into `root`, or moves the file there under `name`."""
    if name.endswith((".tar.gz", ".zip")):
        options = {"filter": "data"} if name.endswith(".tar.gz") else {"format": "zip"}
        shutil.unpack_archive(path, root, **options)
    else:
        os.replace(path, root / name)
