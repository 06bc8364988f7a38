"""Data sets: what one has to provide, and the table of all that data.dataset may name."""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from score_st.config import ConfigError, Table
from score_st.data import array_datasets, containers, idx, image_datasets, parquet
from score_st.data.files import MissingFiles
from score_st.data.images import Images, LazyImages
from score_st.runtime import local_cache, storage


@dataclasses.dataclass(frozen=True)
class Release:
    """Files that TensorFlow Datasets can download, for data.download.

    Attributes:
      builder: the data set's name there.
      files: which of its files are needed; archives are unpacked into data.dir.
    """

    builder: str
    files: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """How the images of a data set are read, and where its files can be obtained.

    A configuration file adds a data set with one line: `DATASETS["MINE"] = Dataset(read_mine, "it comes with ...")`.

    `read(config, split)` gets the configuration and "train" or "test". It returns uint8 [N, H, W, C]: an array, or
    `images.LazyImages` where images are decoded only when they are used. A data set with classes returns
    `labels.labeled(array, labels, name)`, or LazyImages with `labels`, see `labels.labels_of`.

    - H = W = data.image_size, C = data.num_channels, and all values are below data.num_levels. A network is built from
      these keys, not from the images; `pipeline.load` checks that they agree.
    - The images and their order are the same in every call and every process, because batches are drawn by number.
      A random split or crop has a fixed seed.
    - It looks for files in data.dir (`files.find`). If they do not exist, it raises MissingFiles or FileNotFoundError;
      if they are damaged, a ConfigError that names the file (`files.reading`).

    Attributes:
      read: the function described above.
      source: where to get the files, in one line; it ends the message about missing files.
      release: what data.download fetches; None if the files have to be fetched by hand.
      reads_gs: whether `read` takes gs://… as data.dir. For the others, it is copied to data.local_cache first.
    """

    read: Callable[[ConfigDict, str], Images]
    source: str
    release: Release | None = None
    reads_gs: bool = False


IDX = tuple(f"{split}-{part}" for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1"))

ENTRIES = {
    "DIGITS": Dataset(array_datasets.read_digits, "it comes with scikit-learn"),
    "FASHION_MNIST": Dataset(
        idx.read_fashion_mnist,
        "get it from Debian's dataset-fashion-mnist or github.com/zalandoresearch/fashion-mnist (MD5 of "
        "train-images-idx3-ubyte.gz: 8d4fb7e6c68d591d4c3dfef9ec88bf0d)",
        Release("fashion_mnist", tuple(f"{part}-ubyte.gz" for part in IDX)),
    ),
    "MNIST": Dataset(
        idx.read_mnist,
        "get it from ossci-datasets.s3.amazonaws.com/mnist (MD5 of train-images-idx3-ubyte.gz: "
        "f68b3c2dcbeaaa9fbdd348bbdeb94873)",
        Release("mnist", tuple(f"{part}-ubyte.gz" for part in IDX)),
    ),
    "KMNIST": Dataset(
        idx.read_kmnist,
        "get it from codh.rois.ac.jp/kmnist (MD5 of train-images-idx3-ubyte.gz: bdb82020997e1d708af4cf47b453dcf7)",
        Release("kmnist", tuple(f"{part}-ubyte.gz" for part in IDX)),
    ),
    "EMNIST": Dataset(
        idx.read_emnist,
        "unpack gzip.zip (MD5 58c8d27c78d21e728a6bc7b3cc06412e) of nist.gov/itl/products-and-services/emnist-dataset "
        "there, and set data.category to byclass, bymerge, balanced, letters, digits or mnist",
        Release("emnist", ("gzip.zip",)),
    ),
    "CIFAR10": Dataset(
        array_datasets.read_cifar10,
        "unpack cs.toronto.edu/~kriz/cifar-10-python.tar.gz there (MD5 c58f30108f718f92721af3b95e74349a)",
        Release("cifar10", ("cifar-10-binary.tar.gz",)),
    ),
    "SVHN": Dataset(
        array_datasets.read_svhn,
        "get it from ufldl.stanford.edu/housenumbers (MD5 of train_32x32.mat: e26dedcc434d2e4c54c9b2d4a06d8373, of "
        "test_32x32.mat: eb5a983be6a315427106f1b164d9cef3)",
        Release("svhn_cropped", ("train_32x32.mat", "test_32x32.mat")),
    ),
    "CELEBA": Dataset(
        image_datasets.read_celeba,
        "get list_eval_partition.txt (MD5 d32c9cbf5e040fd4025c592c306e6668) and img_align_celeba.zip (MD5 "
        "00d2c5bc6d35e252742224ab0c1e8fcb), to be unpacked, from mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
        Release("celeb_a", ("list_eval_partition.txt", "img_align_celeba.zip")),
    ),
    "IMAGENET32": Dataset(
        image_datasets.read_imagenet32,
        "put train_32x32.tar (SHA-256 244a323d48f8d72f65ad8b54658c01fed68d2d7bdc77ccb43da58c11e94224e5) and "
        "valid_32x32.tar (862e559462b24cf736212a19f6b0d47b55c2dc8ebdaa95ccecfe71260124c8f7) there, which were at "
        "image-net.org/small; what image-net.org still offers, the set of 2017, is IMAGENET32_RESIZED",
    ),
    "IMAGENET32_RESIZED": Dataset(
        array_datasets.read_imagenet32_resized,
        "unpack Imagenet32_train_npz.zip (SHA-256 94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc) "
        "and Imagenet32_val_npz.zip (013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a) of "
        "image-net.org/download-images there",
    ),
    "STL10": Dataset(
        image_datasets.read_stl10,
        "unpack cs.stanford.edu/~acoates/stl10/stl10_binary.tar.gz there (MD5 91f7769df0f17e558f3565bffb0c7dfb)",
        Release("stl10", ("stl10_binary.tar.gz",)),
    ),
    "LSUN": Dataset(
        image_datasets.read_lsun,
        "unpack dl.yf.io/lsun/scenes/CATEGORY_train_lmdb.zip and CATEGORY_val_lmdb.zip there",
    ),
    "CelebAHQ": Dataset(
        image_datasets.read_tfrecords,
        "make it with dataset_tool.py of github.com/tkarras/progressive_growing_of_gans",
    ),
    "FFHQ": Dataset(
        image_datasets.read_tfrecords, "get it from github.com/NVlabs/ffhq-dataset, folder tfrecords/ffhq"
    ),
    "PHOTOS": Dataset(array_datasets.read_photos, "should be a folder of photographs"),
    "FOLDER": Dataset(image_datasets.read_folder, "should be a folder of images"),
    "ZIP": Dataset(containers.read_zip, "should be a zip file of images, or a folder of them"),
    "WEBDATASET": Dataset(
        containers.read_webdataset, "should be a folder of tar files (not compressed), each sample an image and X.cls"
    ),
    "PARQUET": Dataset(
        parquet.read_parquet, "should be a folder of Parquet files with a column image, as the hub's data/ is"
    ),
    "NPY": Dataset(array_datasets.read_own_array, "should be an npy or npz file of uint8 [N, H, W, C]"),
    "NPZ": Dataset(array_datasets.read_own_array, "should be an npy or npz file of uint8 [N, H, W, C]"),
    "ARRAYRECORD": Dataset(image_datasets.read_array_record, "should be a folder of ArrayRecord files", reads_gs=True),
}
DATASETS = Table("data.dataset", ENTRIES)


def with_local_files(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """Returns the configuration with a local data.dir: a copy, if it is in a bucket that `dataset` does not read.

    Raises:
      FileNotFoundError: there is nothing in the bucket.
      ConfigError: the copy can't be written.
      storage.Unreachable: the bucket does not answer.
    """
    data = config.data
    scheme = storage.scheme(data.dir)
    if not scheme or (scheme == "gs" and dataset.reads_gs and not data.local_cache):
        return config
    local = config.copy_and_resolve_references()
    with local.unlocked():
        local.data.dir = str(local_cache.copied(data.dir, data.local_cache, config.storage.patience))
    return local


def hint(images: Images) -> str:
    """Returns what can be done about an image that can't be read, to end its error."""
    names = "; `python -m score_st.data` names all such images, and data.skip_unreadable=True leaves them out"
    return names if isinstance(images, LazyImages) else ""


def read(config: ConfigDict, split: str, strict: bool = True) -> Images:
    """Returns the images of data.dataset, "train" or "test", as the table's entry reads them.

    Args:
      config: the whole configuration.
      split: "train" or "test".
      strict: whether it is an error that the first image can't be read, which may tell of all.

    Raises:
      MissingFiles: the files do not exist; the message says where to get them.
      ConfigError: an unknown data set, damaged files, a missing package, or images of another type.
    """
    name = config.data.dataset
    dataset = DATASETS.choose(name)
    where = f"config.data.dir={config.data.dir!r}"
    try:
        images = dataset.read(with_local_files(config, dataset), split)
        try:
            images[:1]  # to decode one now: it may be broken or of another size
        except ConfigError as error:
            if strict or not isinstance(images, LazyImages):
                raise ConfigError(f"{error}{hint(images)}") from error
    except MissingFiles as error:
        raise MissingFiles(f"{error}; {dataset.source}") from error
    except FileNotFoundError as error:
        raise MissingFiles(f"{where}: {error}; {dataset.source}") from error
    except ImportError as error:
        package = (error.name or str(error)).replace("_", "-")
        raise ConfigError(f"config.data.dataset={name}: needs pip install {package}") from error
    except OSError as error:
        raise ConfigError(f"{where}: can't be read ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        kind = f"{images.dtype}{list(images.shape)}"
        raise ConfigError(f"config.data.dataset={name}: its images are {kind}; should be uint8 [N, H, W, C], N > 0")
    return images
