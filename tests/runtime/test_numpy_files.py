"""Files of NumPy that are not what they seem."""

import io
import zipfile

import numpy as np
import pytest

from score_st.runtime import numpy_files

ARRAYS = {"a": np.arange(12.0).reshape(3, 4), "b": np.arange(3, dtype=np.uint8), "none": np.zeros((0, 5))}


def npy(array: np.ndarray) -> bytes:
    np.save(stream := io.BytesIO(), array)
    return stream.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_intact_files_are_read(save, tmp_path):
    save(tmp_path / "x.npz", **ARRAYS)
    found = numpy_files.read_npz(tmp_path / "x.npz")
    assert list(found) == numpy_files.names(tmp_path / "x.npz") == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    assert list(numpy_files.read_npz(tmp_path / "x.npz", ["b", "c"])) == ["b"]
    np.save(tmp_path / "x.npy", ARRAYS["a"])
    np.testing.assert_array_equal(numpy_files.map_npy(tmp_path / "x.npy"), ARRAYS["a"])


def hostile() -> dict[str, bytes]:
    """Files by what is wrong with them."""
    files, whole = {}, npy(ARRAYS["a"])
    np.savez(stream := io.BytesIO(), **ARRAYS)
    intact = stream.getvalue()
    files["fewer numbers"] = intact.replace(b"(3, 4)", b"(2, 4)")  # NumPy reads two rows, and no checksum
    files["more numbers"] = intact.replace(b"(3, 4)", b"(9, 4)")
    files["another order"] = intact.replace(
        b"'fortran_order': False, 'shape': (3", b"'fortran_order': True,  'shape': (3"
    )
    files["another number"] = intact.replace(np.float64(5).tobytes(), np.float64(6).tobytes())
    files["cut"], files["empty"], files["an array"] = intact[:-30], b"", whole
    entries = {
        "objects": npy(np.zeros(3)).replace(b"<f8", b"|O "),
        "unfinished": whole.replace(b"(3, 4), }", b"(3, 4), {"),
    }
    entries |= {"10^12 numbers": whole.replace(b"(3, 4), }    ", b"(10**12,), }"), "text": b"text", "nothing": b""}
    entries["format 3"] = whole[:6] + b"\3" + whole[7:]
    for name, content in entries.items():
        with zipfile.ZipFile(stream := io.BytesIO(), "w") as archive:
            archive.writestr("a.npy", content)
        files[name] = stream.getvalue()
    for name, kind, count in (("bz2", zipfile.ZIP_BZIP2, 1), ("twice", zipfile.ZIP_STORED, 2)):
        with zipfile.ZipFile(stream := io.BytesIO(), "w", kind) as archive:
            for suffix in ("", ".npy")[-count:]:
                archive.writestr("a" + suffix, whole)
        files[name] = stream.getvalue()
    encrypted = bytearray(intact)
    encrypted[intact.index(b"PK\1\2") + 8] |= 1
    return files | {"encrypted": bytes(encrypted)}


HOSTILE = hostile()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_wrong_is_one_line(name, tmp_path):
    (tmp_path / "x.npz").write_bytes(HOSTILE[name])
    with pytest.raises(ValueError) as error:
        numpy_files.read_npz(tmp_path / "x.npz")
    assert type(error.value) is ValueError and str(error.value).strip() and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", npy(ARRAYS["a"])[:-1], npy(ARRAYS["a"]) + b"\0"])
def test_an_npy_file_has_the_length_that_it_says(content, tmp_path):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError):
        numpy_files.map_npy(tmp_path / "x.npy")


def test_faults_of_the_disk_stay_what_they_are(tmp_path):
    for read in (numpy_files.read_npz, numpy_files.map_npy):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "x")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)
