"""Images in Parquet files, as the Hugging Face hub has them; needs pyarrow."""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_st.config import ConfigError
from score_st.data.files import container_files, held_out, note, reading
from score_st.data.images import MODES, LazyImages, decode_image, decoder, lazy_images, resize_square
from score_st.data.labels import LABEL_NAMES, class_numbers, joined
from score_st.runtime import numpy_files

IMAGE_NAMES = ("image", "img", "images", "png", "jpg", "jpeg", "webp")  # of columns, the first that is there


@dataclasses.dataclass(frozen=True)
class _File:
    """A Parquet file and what its footer says.

    Attributes:
      path: of the file.
      metadata: PyArrow's.
      column: of the images.
      groups: the rows of each row group.
      largest: bytes of the largest row group in memory.
      labels: the class of each image, see `labels.labels_of`.
    """

    path: Path
    metadata: Any
    column: str
    groups: list[int]
    largest: int
    labels: np.ndarray | None

    @classmethod
    def open(cls, path: Path) -> "_File":
        """Reads the footer and the labels of a file."""
        from pyarrow import parquet

        with reading(path):
            metadata = parquet.read_metadata(path)
            names = metadata.schema.to_arrow_schema().names
        column = next((name for name in IMAGE_NAMES if name in names), None)
        if column is None:
            wanted = " or ".join(IMAGE_NAMES)
            raise ConfigError(f"{path}: has the columns {', '.join(names)}; the images should be in {wanted}")
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        largest = max((group.total_byte_size for group in groups), default=0)
        labels = _labels(path, names, metadata.num_rows)
        return cls(path, metadata, column, [group.num_rows for group in groups], largest, labels)

    def read(self, group: int) -> Any:
        """Returns the images of a row group, an Arrow array."""
        from pyarrow import parquet

        with parquet.ParquetFile(self.path, metadata=self.metadata, page_checksum_verification=True) as file:
            return file.read_row_group(group, columns=[self.column], use_threads=False).column(0)


def _labels(path: Path, names: list[str], count: int) -> np.ndarray | None:
    """Returns the labels of a file, of the first of LABEL_NAMES that it has; None if they are not whole numbers."""
    from pyarrow import parquet, types

    column = next((name for name in LABEL_NAMES if name in names), None)
    if column is None:
        return None
    with reading(path):
        values = parquet.read_table(path, columns=[column]).column(0)
    if not types.is_integer(values.type):
        note(f"{path}: the column {column} is not read as classes: it is {values.type}, not whole numbers")
        return None
    return class_numbers(values.to_pylist(), count, f"{path}, {column}")


def _pixels(values: Any, channels: int) -> np.ndarray:
    """Returns the array uint8 [H, W] or [H, W, C] of the values of an Arrow list, nested or flat, of whole numbers."""
    shape, total = list[int](), 1
    while True:
        shape.append(len(values) // total)
        total = len(values)
        if not hasattr(values, "flatten"):
            break
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    if numbers.dtype.kind not in "iu" or not len(numbers) or numbers.min() < 0 or numbers.max() > 255:
        raise ValueError(f"{len(numbers)} numbers of type {numbers.dtype}; should be whole numbers from 0 to 255")
    if len(shape) == 1:
        side = round((shape[0] / channels) ** 0.5)
        shape = [side, side, channels]
    image = numbers.astype(np.uint8).reshape(shape)
    if image.ndim == 3 and image.shape[0] in MODES and image.shape[2] not in MODES:
        image = image.transpose(1, 2, 0)
    return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


def _content(cell: Any, channels: int) -> bytes:
    """Returns the content of an image file, or that of an npy file for a list of numbers."""
    import pyarrow

    if not cell.is_valid:
        raise ValueError("there is no image")
    if isinstance(cell, pyarrow.ListScalar):
        stream = io.BytesIO()
        np.save(stream, _pixels(cell.values, channels))
        return stream.getvalue()
    value = cell.as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError(f"{cell.type} has no bytes of an image")
    return content


def _decode(content: bytes, channels: int) -> Image.Image:
    """Decodes what `_content` returns."""
    if not content.startswith(b"\x93NUMPY"):
        return decode_image(content, channels)
    return Image.fromarray(numpy_files.parse_npy(content)).convert(MODES[channels])


def read_parquet(config: ConfigDict, split: str) -> LazyImages:
    """Reads Parquet files: a column `image` or another of IMAGE_NAMES, and `label` or another of LABEL_NAMES.

    An image is the bytes of a file, alone or in a struct, or a list of whole numbers (height, width, channels). The
    splits are the files by their names or folders; without them a fixed random tenth is the test set. Row groups are
    kept as they were read up to data.memory_gb: images that are read in order need one at a time.
    """
    paths, own = container_files(config, ".parquet", split)
    files = [_File.open(path) for path in paths]
    groups = [(file, i) for file in files for i in range(len(file.groups))]
    starts = np.cumsum([0, *(count for file in files for count in file.groups)])
    numbers = np.arange(starts[-1]) if own or not starts[-1] else held_out(int(starts[-1]), split)
    largest = max(1, *(file.largest for file in files))
    room = max(config.data.num_threads + 1, int(config.data.memory_gb * 1e9 / largest))

    @functools.lru_cache(room)
    def rows(number: int) -> Any:
        file, group = groups[number]
        return file.read(group)

    def place(i: int) -> tuple[int, int]:
        group = int(np.searchsorted(starts, numbers[i], side="right")) - 1
        return group, int(numbers[i] - starts[group])

    def read(i: int) -> bytes:
        group, row = place(i)
        return _content(rows(group)[row], config.data.num_channels)

    def name(i: int) -> str:
        group, row = place(i)
        return f"{groups[group][0].path}, row group {groups[group][1]}, row {row}"

    labels = joined([file.labels for file in files], [file.metadata.num_rows for file in files])
    labels = None if labels is None else labels[numbers]
    return lazy_images(config, len(numbers), read, name, decoder(config, resize_square, _decode), labels=labels)
