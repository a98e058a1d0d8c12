"""Fuzzes the checkpoint readers with mutated files: python tests/checkpoints/fuzz_pickles.py COUNT [SEED].

Every mutant must either read as a dict or raise UserError; the reader must not execute its code.
"""

import pickle
import pickletools
import random
import struct
import sys
import tempfile
import zipfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import torch_files

from kerasdet.checkpoints import read
from kerasdet.errors import UserError

DATA = Path(__file__).parent / "data"
LENGTH_CODES = b"XTBUC\x8c\x8d\x8a\x8b\x8e\x95\x96\x87\x85rqjhMKJ"


def seeds():
    """Makes well-formed files of every format as (name, pickle, function that wraps a pickle into a file)."""
    rng = np.random.default_rng(0)
    arrays = {"conv.weight": rng.random((2, 3), np.float32), "n": np.array(3), "bias": rng.random(4)}
    tree, stored = torch_files.state_tree(arrays)
    raw = {key: array.tobytes() for key, array in stored.items()}
    sized = {key: (array.size, array.tobytes()) for key, array in stored.items()}
    caffe2 = {
        "blobs": {"w": torch_files.array2(arrays["conv.weight"]), "w_momentum": torch_files.array2(arrays["bias"])}
    }
    plain = {"model": arrays, "__author__": "me", "matching_heuristics": True}
    npz = BytesIO()
    np.savez(npz, **arrays)
    made = [
        ("torch_zip", torch_files.dump({"state_dict": tree}), lambda p: torch_files.zip_file(p, raw)),
        (
            "torch_legacy",
            torch_files.dump(torch_files.state_tree(arrays, None)[0]),
            lambda p: torch_files.legacy_file(p, sized),
        ),
        ("caffe2", torch_files.dump(caffe2), bytes),
        *((f"pickle{protocol}", pickle.dumps(plain, protocol), bytes) for protocol in (0, 1, 2, 3, 4, 5)),
        ("safetensors", safetensors_file(arrays), bytes),
        ("npz", npz.getvalue(), bytes),
    ]
    made += [(path.stem, path.read_bytes(), bytes) for path in sorted(DATA.glob("*.pth"))]
    for path in sorted(DATA.glob("*.pth")):
        if zipfile.is_zipfile(path):
            made.append((f"inside_{path.stem}", *_zip_seed(path)))
    return made


def _zip_seed(path):
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (inner,) = (name for name in entries if name.endswith("data.pkl"))

    def wrap(contents):
        out = BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, raw in entries.items():
                archive.writestr(name, contents if name == inner else raw)
        return out.getvalue()

    return entries[inner], wrap


def safetensors_file(arrays):
    """Writes a .safetensors file of float32, float64 and int64 arrays."""
    import json

    codes, header, body = {"float32": "F32", "float64": "F64", "int64": "I64"}, {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        span = [len(body), len(body) + array.nbytes]
        header[name] = {"dtype": codes[array.dtype.name], "shape": list(array.shape), "data_offsets": span}
        body += array.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def attacks(sentinel):
    """Returns opcodes that create the sentinel file if they are executed; each leaves one value on the stack."""
    command, code = f"touch {sentinel}", f"open({str(sentinel)!r}, 'w').close()"

    def short(text):
        return b"\x8c" + bytes([len(text.encode())]) + text.encode()

    def unicode(text):
        return b"X" + struct.pack("<I", len(text.encode())) + text.encode()

    found = []
    for module, name, argument in (
        ("os", "system", command),
        ("posix", "system", command),
        ("subprocess", "getoutput", command),
        ("builtins", "eval", code),
        ("builtins", "exec", code),
        ("__builtin__", "eval", code),
    ):
        names = f"{module}\n{name}\n".encode()
        found += [
            b"c" + names + unicode(argument) + b"\x85R",
            short(module) + short(name) + b"\x93" + unicode(argument) + b"\x85R",
            b"(" + unicode(argument) + b"i" + names,
            b"(c" + names + unicode(argument) + b"o",
            b"c" + names + unicode(argument) + b"\x85\x81",
            b"c" + names + unicode(argument) + b"\x85}\x92",
        ]
    getattr_os = b"cbuiltins\ngetattr\n" + b"ccollections\nOrderedDict\n" + unicode("__init__") + b"\x86R"
    load = b"cpickle\nloads\n" + b"B" + struct.pack("<I", len(found[0]) + 1) + found[0] + b"." + b"\x85R"
    nested = b"ctorch.storage\n_load_from_bytes\n" + load[len(b"cpickle\nloads\n") :]
    return [*found, getattr_os, load, nested]


def _boundaries(data):
    try:
        return [position for _, _, position in pickletools.genops(data)]
    except Exception:
        return list(range(len(data)))


def _insert_attack(random_, data, attack):
    at = random_.choice(_boundaries(data))
    return data[:at] + attack + random_.choice((b"", b"0", b"b", b"R", b"a", b"s")) + data[at:]


def _mutate_bytes(random_, data):
    data = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 5, 20))):
        at = random_.randrange(len(data))
        data[at] = random_.choice((random_.randrange(256), data[at] ^ (1 << random_.randrange(8)), 0, 255))
    return bytes(data)


def _mutate_opcodes(random_, data):
    bounds = _boundaries(data)
    first, second = sorted(random_.choice(bounds) for _ in range(2))
    piece = data[first:second][:200]
    at = random_.choice(bounds)
    if random_.random() < 0.5:
        return data[:at] + piece * random_.choice((1, 1, 2, 50)) + data[at:]
    return data[:first] + data[second:]


def _huge_length(random_, data):
    at = random_.choice(_boundaries(data))
    code = bytes([random_.choice(LENGTH_CODES)])
    huge = random_.choice(
        (b"\xff\xff\xff\x7f", b"\xff" * 4, b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x00\x00\x00\x80\x10\0\0\0")
    )
    return data[:at] + code + huge + data[at:]


def _any_opcode(random_, data):
    at = random_.choice(_boundaries(data))
    codes = "".join(random_.choice(pickletools.opcodes).code for _ in range(random_.choice((1, 2, 4))))
    return data[:at] + codes.encode("latin-1") + data[at:]


def mutants(count, seed, sentinel):
    """Yields `count` mutated files as (name, bytes), reproducibly from seed and sentinel."""
    random_ = random.Random(seed)
    sources, evil = seeds(), attacks(sentinel)
    for _ in range(count):
        name, data, wrap = random_.choice(sources)
        for _ in range(random_.choice((1, 1, 1, 2, 3))):
            kind = random_.randrange(7)
            if not data:
                break
            if kind == 0:
                data = _insert_attack(random_, data, random_.choice(evil))
            elif kind == 1:
                data = data[: random_.randrange(len(data))]
            elif kind == 2:
                data = _mutate_opcodes(random_, data)
            elif kind == 3:
                data = _huge_length(random_, data)
            elif kind == 4:
                data = _any_opcode(random_, data)
            elif kind == 5:
                other = random_.choice(sources)[1]
                data = data[: random_.randrange(len(data))] + other[random_.randrange(len(other)) :]
            else:
                data = _mutate_bytes(random_, data)
        data = wrap(data)
        yield name, _mutate_bytes(random_, data) if random_.random() < 0.1 and data else data


def run(count, seed, folder):
    """Reads mutants; keeps the file and raises AssertionError for other errors than UserError and for execution.

    Args:
        count: Number of mutated files.
        seed: Seed of the mutations.
        folder: Empty folder to work in.

    Returns:
        Counter of "read", "refused" and "damaged"; "damaged" counts errors that a library raised, not the reader.
    """
    sentinel, outcomes = Path(folder) / "sentinel", Counter()
    path = Path(folder) / "mutant.bin"
    for name, data in mutants(count, seed, sentinel):
        path.write_bytes(data)
        try:
            state = read(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: "), (name, error)
            outcomes["damaged" if ": the file is damaged (" in str(error) else "refused"] += 1
            assert "MemoryError" not in str(error), (name, error)
        else:
            assert state and all(type(array) is np.ndarray and not array.dtype.hasobject for array in state.values())
            outcomes["read"] += 1
        assert not sentinel.exists(), name
    return outcomes


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        print(dict(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, work)))
