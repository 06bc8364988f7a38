"""Images in zip files, tar shards, Parquet files, TFRecords and ArrayRecords."""

import contextlib
import io
import json
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from support import hostile, image_files

from fuzzing import Read, Target, sound

KINDS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif", "PPM": ".ppm"}
IMAGES = image_files.noise(4, 8, 8, 3)
PICTURES = {kind: image_files.encode(IMAGES[0], kind) for kind in KINDS}
FILES = {f"{i // 2:05d}/img{i}.png": image_files.encode(image) for i, image in enumerate(IMAGES)}
LISTED = json.dumps({"labels": [[name, i] for i, name in enumerate(FILES)]}).encode()
# labels as text in files: mostly damaged JSON
labels = st.one_of(hostile.json_texts(LISTED), hostile.json_texts(b'{"label": 3}'), st.sampled_from(hostile.ODD))
names = st.sampled_from(
    [*FILES, "dataset.json", "train/1.png", "test/2.png", "Train/x.png", "../../x.png", "/x.png", "", "a\0b.png"]
    + ["__MACOSX/._1.png", ".hidden.png", "x.txt", "é.png", "folder/", "a/b/c/d.webp", "0.png", "0.cls", "0.json"]
)


def pixel_bomb() -> bytes:
    """A PNG of 182 million pixels in a few hundred KB: more than Pillow decodes."""
    import zlib

    chunk = lambda kind, data: len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    head = (14_000).to_bytes(4, "big") + (13_000).to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = zlib.compress(bytes(13_000 * (1 + 3 * 14_000) // 4), 9)  # a quarter of them
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def pictures() -> st.SearchStrategy[bytes]:
    """Pictures of any format, damaged or not."""
    intact = st.sampled_from([*PICTURES.values()])
    return st.one_of(intact, intact, intact, hostile.mutated([*PICTURES.values()]))


def loaded(dataset: str) -> Read:
    """Reads both splits, with their labels, and checks that they are images."""
    from score_st.data import pipeline
    from score_st.data.labels import labels_of

    def read(path: Path, place: str = "") -> Any:
        config = image_files.settings(dataset, path, image_size=8, num_channels=3, prepared="")
        config.model.num_classes = 2**31 - 1  # so that those of ArrayRecord are read
        found = {}
        for split in ("train", "test"):
            with contextlib.redirect_stderr(io.StringIO()):  # notes
                images = pipeline.load(config, split)
            array, numbers = np.asarray(images), labels_of(images)
            sound(array.dtype == np.uint8 and array.shape[1:] == (8, 8, 3) and len(array), "no images")
            if numbers is not None:
                fit = numbers.shape == (len(array),) and numbers.dtype == np.int32
                sound(fit and numbers.min() >= -1, "no labels")
            found[split] = array
        return found

    return read


def of_originals(read: Read) -> Read:
    """Checks that every image is one of those that went into the file, whose checksums its format has."""
    known = {image.tobytes() for image in IMAGES}

    def checked(path: Path) -> Any:
        found = read(path)
        sound(all(image.tobytes() in known for part in found.values() for image in part), "another image")

    return checked


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(stream := io.BytesIO(), "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


@st.composite
def zips(draw) -> bytes:
    """A zip file of pictures with right checksums, or with fields that lie."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, contextlib.suppress(UserWarning):
        for name in draw(st.lists(names, max_size=6)):
            content = draw(labels if name.endswith(".json") else pictures())
            archive.writestr(zipfile.ZipInfo(name), content, draw(st.sampled_from((0, 8, 12, 14))))
    return draw(hostile.lying_fields(stream.getvalue()))


def zip_targets() -> list[Target]:
    """Zip files of pictures, as EDM's tools make them."""
    in_splits = {f"{'train' if i < 3 else 'test'}/{i}.png": content for i, content in enumerate(FILES.values())}
    valid = [zip_of(FILES | {"dataset.json": LISTED}), zip_of(FILES, zipfile.ZIP_DEFLATED), zip_of(in_splits)]
    bombs = [{"1.png": bytes(2**28 + 1), "2.png": bytes(2**28 + 2)}, {"1.png": pixel_bomb(), "2.png": pixel_bomb()}]
    packed = [zip_of(files, zipfile.ZIP_DEFLATED) for files in bombs]
    rare = lambda usual: st.integers(0, 199).flatmap(lambda n: st.just(packed[n]) if n < 2 else usual)
    return [
        Target("zip", "a.zip", valid, of_originals(loaded("ZIP"))),
        Target("zip, built", "a.zip", valid, loaded("ZIP"), rare(zips())),
    ]


def tar_of(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w", format=kind) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@st.composite
def tars(draw) -> bytes:
    """A tar file with right checksums of its headers, whose entries may be links, folders, devices or of any size."""
    stream = io.BytesIO()
    for name in draw(st.lists(names, max_size=6)):
        text = name.endswith((".json", ".cls"))
        info, content = tarfile.TarInfo(name.replace("\0", "")), draw(labels if text else pictures())
        info.size = len(content) if draw(st.integers(0, 9)) else draw(st.sampled_from(hostile.EXTREME)) % 2**60
        info.type = draw(st.sampled_from([tarfile.REGTYPE] * 12 + [b"1", b"2", b"3", b"5", b"6", b"S", b"x", b"L"]))
        info.linkname = draw(st.sampled_from(("", "/etc/passwd", name)))
        form = draw(st.sampled_from((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)))
        with contextlib.suppress(ValueError):  # a size that USTAR can't have
            stream.write(info.tobuf(form))
        stream.write(content + bytes(-len(content) % 512))
    return stream.getvalue() + bytes(draw(st.sampled_from((0, 512, 1024, 7))))


def tar_targets() -> list[Target]:
    """Tar shards of WebDataset; the format has no checksums of what is in it."""
    samples = {}
    for i, content in enumerate(FILES.values()):
        samples |= {f"./{i}.png": content, f"./{i}.{'cls' if i % 2 else 'json'}": b"3" if i % 2 else b'{"label": 1}'}
    valid = [tar_of(samples), tar_of(samples, tarfile.GNU_FORMAT)]
    return [Target("tar", "a.tar", valid, loaded("WEBDATASET"), tars())]


def parquet_of(images: list, classes: list | None = None, **options: Any) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"image": images} | ({} if classes is None else {"label": classes})
    parquet.write_table(pa.table(columns), stream := io.BytesIO(), **{"row_group_size": 2} | options)
    return stream.getvalue()


CELLS = st.one_of(
    st.none(), st.binary(max_size=9), hostile.mutated([*PICTURES.values()]), st.sampled_from([*FILES.values()])
)
NUMBERS = st.lists(st.one_of(st.integers(-3, 300), st.sampled_from([0, 2**31, -(2**63), 2**63 - 1])), max_size=30)


@st.composite
def parquets(draw) -> bytes:
    """A sound Parquet file whose images, or labels, are none."""
    count = draw(st.integers(0, 5))
    rows = lambda cells: draw(st.lists(cells, min_size=count, max_size=count))
    structs = st.fixed_dictionaries({"bytes": CELLS, "path": st.one_of(st.none(), st.just("x.png"))})
    nested = st.lists(st.lists(NUMBERS, max_size=9), max_size=9)
    kinds = [CELLS, structs, NUMBERS, nested, st.one_of(st.none(), NUMBERS), st.floats(), st.just("text")]
    wide = [0, 1, -1, None, 2**31 - 1, 2**31, -(2**63)]
    classes = draw(st.sampled_from([st.sampled_from(wide), st.floats(), st.just("cat"), st.just([1]), st.none()]))
    try:
        return parquet_of(rows(draw(st.sampled_from(kinds))), rows(classes), row_group_size=draw(st.integers(1, 3)))
    except Exception:  # Arrow has no such column
        return b""


def parquet_targets() -> list[Target]:
    """Parquet files of the Hugging Face hub."""
    structs = [{"bytes": content, "path": None} for content in FILES.values()]
    options = dict(write_page_checksum=True, compression="none", use_dictionary=False)
    plain = parquet_of(list(FILES.values()), [0, 1, 2, 3], **options)
    others = [parquet_of(structs, [0, 1, 2, 3]), parquet_of([image.tolist() for image in IMAGES])]
    return [Target("parquet", "a.parquet", [plain, *others], loaded("PARQUET"), parquets())]


def record_targets() -> list[Target]:
    """TFRecords, and ArrayRecords of pictures and of TensorFlow Datasets' examples."""
    from score_st.data import image_datasets

    def ffhq(path: Path) -> Any:
        config = image_files.settings("FFHQ", path.parent, image_size=8, tfrecords_path=path.name)
        found = np.asarray(image_datasets.read_tfrecords(config, "train"))
        sound(found.shape[1:] == (8, 8, 3) and found.dtype == np.uint8, "no images")

    def framed(example: bytes) -> bytes:
        from score_st.data import tfrecord

        length = len(example).to_bytes(8, "little")
        return length + tfrecord.masked_crc(length) + example + tfrecord.masked_crc(example)

    def written(records: list[bytes]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            image_files.write_records(path := Path(folder) / "x", records)
            return path.read_bytes()

    packed = [image_files.progressive_gan(image, i % 2 == 0) for i, image in enumerate(IMAGES)]
    examples = st.lists(hostile.mutated([record[12:-4] for record in packed]).map(framed), min_size=1, max_size=3)
    of_tfds = [image_files.example(content, 3, b"\x08\x05") for content in FILES.values()]
    mixed = st.one_of(hostile.mutated(of_tfds), pictures(), st.binary(min_size=1, max_size=20))
    built = st.lists(mixed, min_size=2, max_size=4).map(written)
    valid = [written(of_tfds), written(list(FILES.values()))]
    return [
        Target("TFRecord", "r.tfrecords", [b"".join(packed)], ffhq, examples.map(b"".join)),
        Target("ArrayRecord", "a.array_record", valid, loaded("ARRAYRECORD"), built),
    ]
