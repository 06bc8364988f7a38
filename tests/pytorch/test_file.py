"""Files of torch.save: both formats, damaged and hostile files, and those that we write."""

import io
import pickle
import random
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.official import CHECKPOINT, FIXTURES, assert_same_content, converted

from score_st.config import ConfigError
from score_st.pytorch import file as torch_file


def peak_memory() -> int:
    """Of this process, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_both_formats_have_the_same_content():
    current, legacy = torch_file.read(CHECKPOINT), torch_file.read(FIXTURES / "official_legacy.pth")
    assert current["step"] == 3 and current["ema"]["num_updates"] == 3 and current["ema"]["decay"] == 0.9999
    assert current["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert current["optimizer"]["param_groups"][0]["lr"] == pytest.approx(2e-4 * 2 / 5)
    assert sum(tensor.size for tensor in current["model"].values()) == 12539 + 1000
    assert current["model"]["module.sigmas"].dtype == np.float64
    assert_same_content(current, legacy)


def test_pytorch_reads_what_we_write(tmp_path):
    """Where PyTorch is installed, in its mode that accepts weights only."""
    torch = pytest.importorskip("torch")
    tree = OrderedDict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=[np.float32(3), (1, 2.5, None, True, "ü")])
    torch_file.write(tmp_path / "new.pth", tree | {"c": {0: np.arange(3)[::-1]}})
    content = torch.load(tmp_path / "new.pth", weights_only=True)
    assert content["b"][1] == (1, 2.5, None, True, "ü") and content["c"][0].tolist() == [2, 1, 0]
    np.testing.assert_array_equal(content["a"].numpy(), tree["a"])


def damaged_copies(content: bytes, count: int) -> Iterator[bytes]:
    """Damaged copies of a file, no two the same."""
    rng = random.Random(0)
    hashes = {hash(content)}
    while len(hashes) <= count:
        broken, kind, place = bytearray(content), rng.randrange(6), rng.randrange(len(content))
        if kind == 0:
            broken[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            for _ in range(8):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        elif kind == 2:
            del broken[place:]
        elif kind == 3:
            broken += rng.randbytes(rng.randrange(1, 100))
        elif kind == 4:
            del broken[place : place + rng.randrange(1, 1000)]
        else:
            broken[place:place] = rng.randbytes(rng.randrange(1, 100))
        if hash(bytes(broken)) not in hashes:
            hashes.add(hash(bytes(broken)))
            yield bytes(broken)


def test_a_thousand_damaged_files_are_refused_in_one_line(tmp_path):
    path, before, count = tmp_path / "damaged.pth", peak_memory(), 0
    for broken in damaged_copies(CHECKPOINT.read_bytes(), 1000):
        path.write_bytes(broken)
        with pytest.raises(ConfigError) as error:
            torch_file.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600
        count += 1
    assert count == 1000 and peak_memory() - before < 200 * 1024


def zipped(pickled: bytes, entries=(), compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file in today's format."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in entries:
            archive.writestr(f"archive/{name}", data)
    return file.getvalue()


def tensor(shape: str, stride: str, storage: str = "X\x01\x00\x00\x000", size: str = "K\x04") -> bytes:
    """A pickle of one tensor, some parts of which are given."""
    head = "\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    tail = f"{storage}X\x03\x00\x00\x00cpu{size}tQK\x00{shape}{stride}\x89ccollections\nOrderedDict\n)RtR."
    return (head + tail).encode("latin1")


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.target}",)


def laughs(levels: int) -> bytes:
    """A list of ten references to a list of ten references to ..."""
    level = b"(" + b"K\x01" * 10 + b"l"
    for i in range(levels):
        level += b"q" + bytes([i]) + b"(" + (b"h" + bytes([i])) * 10 + b"l"
    return b"\x80\x02" + level + b"."


def hostile_files(target: Path) -> Iterator[tuple[bytes, str]]:
    """Files, and part of the message that refuses them."""
    four = [("data/0", bytes(16))]
    huge = "J\x00\x00\x00\x40"
    yield zipped(pickle.dumps({"model": Hostile(target)}, 0)), "which no checkpoint needs"
    for protocol in range(1, 6):
        yield zipped(pickle.dumps({"model": Hostile(target)}, protocol)), "posix.system"
    yield pickle.dumps({"model": Hostile(target)}, 2), "posix.system"  # the legacy format begins with a pickle
    yield zipped(f"(S'touch {target}'\nios\nsystem\n.".encode()), "instruction INST"
    yield zipped(f"(cos\nsystem\nS'touch {target}'\no.".encode()), "os.system"
    yield zipped(b"\x80\x02\x82\x01."), "instruction EXT1"
    yield zipped(b"\x80\x02cbuiltins\neval\n(S'1'\ntR."), "builtins.eval"
    yield zipped(b"\x80\x02ccollections\nOrderedDict\n)\x81."), "instruction NEWOBJ"
    yield zipped(b"\x80\x02ctorch\nFloatStorage\n)R."), "calls something that is not a function"
    yield zipped(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."), "sets attributes"
    nested, doubled = b")" + b"\x85" * 300_000, b")" + b"q\x01h\x01\x86" * 99  # to hash either ends badly
    text = b"X\0\0\x10\0" + b"a" * 2**20 + b"q\1"  # a MiB, copied a thousand times or taken to pieces
    yield zipped(b"\x80\x02" + text + b"(" + b"c_codecs\nencode\n(h\1X\5\0\0\0asciitR" * 1000 + b"l."), "more than"
    yield zipped(b"\x80\x02" + text + b"ctorch\nSize\n(h\1tR."), "a shape that is none"
    for value in (nested, doubled):
        yield zipped(b"\x80\x02}" + value + b"Ns."), "keys are neither text nor numbers"
        yield zipped(b"\x80\x02ccollections\nOrderedDict\n(]](" + value + b"NeatR."), "neither text nor numbers"
        yield zipped(b"\x80\x02" + value + b")R."), "calls something that is not a function"
        yield zipped(b"\x80\x02cnumpy\ndtype\n(" + value + b"tR."), "the type of a tuple"
        yield zipped(b"\x80\x02(X\x07\x00\x00\x00storage" + value + b"X\x01\x00\x00\x000NK\x01tQ."), "unknown way"
    yield zipped(b"\x80\x02" + b"N" * (2**20 + 1) + b"."), "more instructions"
    yield zipped(b"\x80\x02]r\xff\xff\xff\x7f." + bytes(10)), ""  # a memo of 2^31 places
    yield zipped(b"\x80\x02" + b"]" * 200_000 + b"."), ""
    yield zipped(b"\x80\x02" + b"](" * 100_000 + b"e" * 100_000 + b"."), "nest deeper"
    yield zipped(laughs(200)), "nest deeper"
    yield zipped(bytes(2**24 + 1)), "more than any checkpoint needs"
    yield zipped(bytes(2**26), compression=zipfile.ZIP_DEFLATED), "is compressed"
    yield zipped(tensor(f"({huge}{huge}t", "(K\x00K\x00t"), four), ""
    yield zipped(tensor("(K\x05t", "(K\x01t"), four), "does not fit into its 4 numbers"
    yield zipped(tensor("(K\x02t", "(J\xff\xff\xff\xfft"), four), "not whole numbers"
    yield zipped(tensor("(K\x04t", "(K\x01t", size=huge), four), "data/0 should have 1073741824"
    yield zipped(tensor("(K\x04t", "(K\x01t", storage="X\x03\x00\x00\x000\n\n"), four), "is missing"
    yield zipped(tensor("(K\x04t", "(K\x01t", storage="X\x04\x00\x00\x00../x"), four), "is missing"
    yield zipped(tensor("(K\x04t", "(K\x01t"), [*four, ("data/1", bytes(4))]), "data/1 belongs to no tensor"
    yield zipped(b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x89\x88\x87R."), "type 'O8'"
    yield zipped(b"\x80\x02K\x01"), "not a file of torch.save, or a damaged one"
    yield b"PK\x03\x04", "not a file of torch.save, or a damaged one"
    yield b"\x93NUMPY", "not a file of torch.save"
    yield b"", "is empty"


def test_hostile_files_run_nothing(tmp_path):
    path, target, before = tmp_path / "hostile.pth", tmp_path / "touched", peak_memory()
    for content, message in hostile_files(target):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as error:
            converted(torch_file.read(path))
        assert message in str(error.value) and "\n" not in str(error.value)
        assert not target.exists()
    assert peak_memory() - before < 200 * 1024
    path.write_bytes(zipped(tensor("(K\x04t", "(K\x01t"), [("data/0", struct.pack("<4f", 1, 2, 3, 4))]))
    np.testing.assert_array_equal(torch_file.read(path), [1, 2, 3, 4])  # the bad ones are variants of a good one
