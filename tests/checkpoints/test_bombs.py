"""Tests that small files which declare large contents are refused before they cost memory."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_files import one_tensor

from kerasdet.checkpoints import read


def _npy_header(shape):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue()


def _zip_bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", bytes(100 * 2**20))
    return out.getvalue()


def _zip_with_false_size():
    """Makes a zip whose entry declares 8 bytes but inflates to 100 MiB."""
    data = bytearray(_zip_bomb())
    for signature, size in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(signature) + size
        data[at : at + 4] = struct.pack("<I", 8)
    return bytes(data)


def _zipped(name, raw):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, raw)
    return out.getvalue()


BIG = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
BOMBS = {
    "expanded tensor": one_tensor((2**35,), (0,)),
    "many expanded tensors": one_tensor((2**20, 2**20), (0, 0)),
    "bytes of 8 EiB": b"\x80\x04\x8e" + BIG + b".",
    "bytearray of 8 EiB": b"\x80\x05\x96" + BIG + b".",
    "text of 8 EiB": b"\x80\x04\x8d" + BIG + b".",
    "text of 4 GiB": b"\x80\x02X\xff\xff\xff\xff.",
    "integer of 2 GiB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "frame of 8 EiB": b"\x80\x04\x95" + BIG + b"}.",
    "memo index of 4 billion": b"\x80\x02}r\xff\xff\xff\xff.",
    "copies of a list of pairs": b"\x80\x02ccollections\nOrderedDict\nq\x000]q\x01("
    + b"".join(b"X\x04\x00\x00\x00%04dN\x86" % i for i in range(5000))
    + b"e0]("
    + b"h\x00h\x01\x85R" * 5000
    + b"e.",
    "copies of a text": b"\x80\x02c_codecs\nencode\nq\x000X"
    + struct.pack("<I", 100000)
    + b"a" * 100000
    + b"q\x010]("
    + b"h\x00h\x01\x85R" * 5000
    + b"e.",
    "laughs": b"\x80\x02]q\x000" + b"".join(b"]q%c(" % (i + 1) + b"h%c" % i * 9 + b"e0" for i in range(60)) + b"h\x3c.",
    "deep lists": b"\x80\x02" + b"]" * 200000 + b"a" * 199999 + b".",
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * 200000 + b"Ns.",
    "marks": b"\x80\x02" + b"(" * 300000 + b".",
    ".npy of 4 TiB": _zipped("a.npy", _npy_header((2**40,))),
    "zip": _zip_bomb(),
    "zip with a false size": _zip_with_false_size(),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_cost_no_memory(tmp_path, name):
    path = tmp_path / "bomb.bin"
    path.write_bytes(BOMBS[name])
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"bomb\.bin: "):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()
