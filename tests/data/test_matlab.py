"""Files of MATLAB 5: as scipy reads them, and damaged ones, some of which end a process that scipy reads them in."""

import io
import zlib

import numpy as np
import pytest
import scipy.io

from score_st.data import matlab

TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


def saved(arrays, **options) -> bytes:
    scipy.io.savemat(stream := io.BytesIO(), arrays, **options)
    return stream.getvalue()


def read(path, content, names=("X", "y")):
    path.write_bytes(content)
    return matlab.read(path, names)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_arrays_are_those_of_scipy(tmp_path, dtype, compressed):
    """Of any size: a matrix of a few bytes lies in its tag."""
    arrays = {
        "X": np.arange(24).reshape(2, 3, 4).astype(dtype),
        "y": np.array([[7]], dtype),
        "empty": np.zeros((0, 3)),
    }
    content = saved(arrays | {"text": "abc", "z": np.array([[1j]])}, do_compression=compressed)
    found, expected = read(tmp_path / "a.mat", content, arrays), scipy.io.loadmat(io.BytesIO(content))
    assert set(found) == set(arrays)
    for name in arrays:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name])
    for name in ("text", "z"):
        with pytest.raises(ValueError, match=f"{name!r} is not an array of real numbers"):
            read(tmp_path / "a.mat", content, [name])


def test_integers_may_be_stored_as_a_smaller_type(tmp_path):
    """As MATLAB does."""
    content = bytearray(saved({"y": np.array([[1.0, 2.0, 3.0]])}))
    place = content.index(np.array([9, 24], "<u4").tobytes())
    content[place:] = np.array([3 << 16 | 2], "<u4").tobytes() + b"\1\2\3\0"
    content[132:136] = np.array([len(content) - 136], "<u4").tobytes()
    assert read(tmp_path / "a.mat", bytes(content))["y"].tolist() == [[1.0, 2.0, 3.0]]
    np.testing.assert_array_equal(scipy.io.loadmat(tmp_path / "a.mat")["y"], [[1.0, 2.0, 3.0]])


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_bit_is_refused_or_without_effect(tmp_path, compressed):
    """But for the numbers of a file without a checksum, and for names."""
    arrays = {"X": np.arange(12, dtype=np.uint8).reshape(3, 4)}
    content = saved(arrays, do_compression=compressed)
    refused = 0
    for place in range(8 * 124, 8 * len(content)):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        try:
            found = read(tmp_path / "a.mat", bytes(damaged))
            assert not compressed or "X" not in found or np.array_equal(found["X"], arrays["X"])
        except (ValueError, zlib.error):
            refused += 1
    assert refused > 100
    for cut in range(0, len(content), 3):
        try:
            assert "X" not in read(tmp_path / "a.mat", content[:cut])
        except (ValueError, zlib.error):
            pass
