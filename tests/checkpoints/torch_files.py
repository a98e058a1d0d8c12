"""Writes torch's file formats and pickles byte by byte, from trees of Python values and a few node classes."""

import io
import struct
import zipfile
from dataclasses import dataclass

FLOAT4 = struct.pack("<4f", 1, 2, 3, 4)
MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclass
class Global:
    module: str
    name: str


@dataclass
class Call:
    function: object
    arguments: tuple


@dataclass
class New:
    kind: object
    arguments: tuple


@dataclass
class Build:
    target: object
    state: object


@dataclass
class Persistent:
    identity: tuple


@dataclass
class Text2:
    """Holds a Python 2 string: raw bytes under the opcode BINSTRING."""

    raw: bytes


@dataclass
class Raw:
    """Holds opcodes that are written unchanged."""

    opcodes: bytes


def opcodes(node):
    """Returns the opcodes (protocol 2) that leave the value of a tree on the stack."""
    if isinstance(node, Raw):
        return node.opcodes
    if isinstance(node, Global):
        return f"c{node.module}\n{node.name}\n".encode()
    if isinstance(node, Call):
        return opcodes(node.function) + opcodes(node.arguments) + b"R"
    if isinstance(node, New):
        return opcodes(node.kind) + opcodes(node.arguments) + b"\x81"
    if isinstance(node, Build):
        return opcodes(node.target) + opcodes(node.state) + b"b"
    if isinstance(node, Persistent):
        return opcodes(node.identity) + b"Q"
    if isinstance(node, Text2):
        return b"T" + struct.pack("<i", len(node.raw)) + node.raw
    if node is None or isinstance(node, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[node]
    if isinstance(node, int):
        raw = node.to_bytes(node.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(node, float):
        return b"G" + struct.pack(">d", node)
    if isinstance(node, str):
        return b"X" + struct.pack("<I", len(node.encode())) + node.encode()
    if isinstance(node, tuple):
        return b"(" + b"".join(map(opcodes, node)) + b"t"
    if isinstance(node, list):
        return b"](" + b"".join(map(opcodes, node)) + b"e"
    if isinstance(node, dict):
        return b"}(" + b"".join(opcodes(key) + opcodes(value) for key, value in node.items()) + b"u"
    raise TypeError(type(node))


def dump(node):
    """Returns a complete pickle of protocol 2."""
    return b"\x80\x02" + opcodes(node) + b"."


def storage(kind, key, numel, *view):
    """Returns the persistent id of a storage; `kind` is a class such as FloatStorage."""
    return Persistent(("storage", Global("torch", kind), key, "cpu", numel, *view))


def tensor(stored, offset, shape, strides):
    """Returns the node of a torch tensor on a storage."""
    arguments = (stored, offset, shape, strides, False, Call(Global("collections", "OrderedDict"), ()))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def array2(array):
    """Returns the node of a NumPy array as Python 2 pickles it, with its bytes in a string."""
    code = {"float32": "f4", "float64": "f8", "int64": "i8", "int32": "i4"}[array.dtype.name]
    kind = Build(
        Call(Global("numpy", "dtype"), (Text2(code.encode()), 0, 1)), (3, Text2(b"<"), None, None, None, -1, -1, 0)
    )
    empty = Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), Text2(b"b")))
    return Build(empty, (1, array.shape, kind, False, Text2(array.tobytes())))


def zip_file(contents, storages, compression=zipfile.ZIP_STORED, **records):
    """Writes a torch zip file: data.pkl from a tree or opcodes, storages from bytes by key, other records by name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr("archive/data.pkl", contents if isinstance(contents, bytes) else dump(contents))
        for name, raw in records.items():
            archive.writestr(f"archive/{name}", raw)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
        archive.writestr("archive/version", b"3\n")
    return out.getvalue()


def legacy_file(contents, storages):
    """Writes a legacy torch file; `storages` is {key: (numel, bytes)}."""
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    pickles = dump(MAGIC) + dump(1001) + dump(info) + (contents if isinstance(contents, bytes) else dump(contents))
    return pickles + dump(list(storages)) + b"".join(struct.pack("<q", n) + raw for n, raw in storages.values())


def state_tree(arrays, *view):
    """Returns nodes and storages for a dict of contiguous arrays, one storage each: `tensors, {key: array}`.

    `view` ends each storage's persistent id; the legacy format has a None there.
    """
    tree, stored = {}, {}
    for index, (name, array) in enumerate(arrays.items()):
        strides = tuple(step // array.itemsize for step in array.strides)
        source = storage(STORAGES[array.dtype.name], str(index), array.size, *view)
        tree[name] = tensor(source, 0, array.shape, strides)
        stored[str(index)] = array
    return tree, stored


def torch_zip(arrays):
    """Writes a torch zip file of a dict of arrays."""
    tree, stored = state_tree(arrays)
    return zip_file(tree, {key: array.tobytes() for key, array in stored.items()}, byteorder=b"little")


def torch_legacy(arrays):
    """Writes a legacy torch file of a dict of arrays."""
    tree, stored = state_tree(arrays, None)
    return legacy_file(tree, {key: (array.size, array.tobytes()) for key, array in stored.items()})


def one_tensor(shape, strides, offset=0, numel=4, raw=FLOAT4, kind="FloatStorage"):
    """Writes a torch zip file of the tensor `w` on a storage of `numel` elements with the bytes `raw`."""
    return zip_file({"w": tensor(storage(kind, "0", numel), offset, shape, strides)}, {"0": raw})
