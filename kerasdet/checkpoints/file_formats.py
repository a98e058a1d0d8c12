"""Reads the file formats of checkpoints: torch's zip and legacy formats, plain pickles, `.npz` and `.safetensors`.

Each reader takes the bytes of a whole file. A damaged file may raise exceptions of many types, such as
`zipfile.BadZipFile`. `read` converts these exceptions, and adds the file name and a remedy to all messages.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable

import numpy as np

from kerasdet.checkpoints.pickle_allowlist import Array, storage
from kerasdet.checkpoints.pickles import load
from kerasdet.checkpoints.state_dict import StateDict, class_names, named_tensors
from kerasdet.checkpoints.tensors import (
    DTYPES,
    Storage,
    Tensor,
    check_shape,
    check_total,
    contiguous_strides,
    itemsize,
    to_array,
)

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}


def read_zip(data: bytes, weights: str | None = None) -> dict[str, np.ndarray]:
    """Reads a torch zip file or an `.npz` file. The contents of the zip file tell which of the two it is.

    Args:
        data: Bytes of the whole file.
        weights: Name of the dictionary entry that contains the weights, such as "model_ema". None if the file contains
            only one set. An `.npz` file has no such entries.

    Returns:
        The arrays by name.

    Raises:
        ValueError: If the file is damaged, is neither a torch zip file nor an `.npz` file, or could run code.
        UserError: If the file holds several sets of weights, and `weights` is not the name of one of them.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        check_total(sum(info.file_size for info in entries.values()), len(data))
        roots = [name[: -len("data.pkl")] for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(roots) == 1:
            if f"{roots[0]}constants.pkl" in entries:
                raise ValueError("the file is a TorchScript archive, which holds code; expected a state dict")
            return _torch_zip(archive, entries, roots[0], len(data), weights)
        if not roots and any(name.endswith(".npy") for name in entries):
            return _npz(archive, entries, len(data))
    raise ValueError("the file is a zip file that has neither one data.pkl (torch) nor .npy entries (.npz)")


def read_pickles(data: bytes, weights: str | None = None) -> dict[str, np.ndarray]:
    """Reads a plain pickle of NumPy arrays or a torch file of the legacy format (several pickles, then storages).

    Args:
        data: Bytes of the whole file.
        weights: Name of the dictionary entry that contains the weights, such as "model_ema". None if the file contains
            only one set.

    Returns:
        The arrays by name.

    Raises:
        ValueError: If the file is damaged, or its contents could run code.
        UserError: If the file holds several sets of weights, and `weights` is not the name of one of them.
    """
    stream = io.BytesIO(data)
    first = load(stream)
    if type(first) is not int or first != TORCH_MAGIC:
        return StateDict(_arrays(named_tensors(first, weights), None, len(data)), class_names(first))
    if load(stream) != 1001:
        raise ValueError("the file is a legacy torch file of an unknown protocol version; expected version 1001")
    load(stream)
    storages: dict[str, Storage] = {}

    def persistent(identity):
        made = storage(identity)
        storages.setdefault(made.key, made)
        return made

    contents = load(stream, persistent)
    named = named_tensors(contents, weights)
    keys = load(stream)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise ValueError("the file is a legacy torch file without the list of storages that follows its pickle")
    arrays = _arrays(named, _legacy_storages(data, stream.tell(), keys, storages), len(data))
    return StateDict(arrays, class_names(contents))


def read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file: a JSON header, then the tensors without gap or overlap.

    Args:
        data: Bytes of the whole file.

    Returns:
        The arrays by name.

    Raises:
        ValueError: If the header is invalid or does not match the data.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or start > len(data):
        raise ValueError("the file is cut short, or no .safetensors file: its header is longer than the file")
    try:
        header = json.loads(data[8:start].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError("the file is a .safetensors file whose header is not valid JSON") from error
    if type(header) is not dict:
        raise ValueError("the file is a .safetensors file whose header is not a JSON object")
    header.pop("__metadata__", None)
    body, arrays, end = memoryview(data)[start:], {}, 0
    check_total(sum(8 * math.prod(_safetensor(name, entry)[1]) for name, entry in header.items()), len(data))
    for name, entry in sorted(header.items(), key=lambda item: _safetensor(*item)[2]):
        element, shape, (first, last) = _safetensor(name, entry)
        if first != end or last - first != math.prod(shape) * itemsize(element) or last > len(body):
            raise ValueError(
                f"the tensor {name[:100]!r} overlaps another tensor, leaves a gap, is truncated or does not match "
                "its shape"
            )
        arrays[name], end = to_array(body[first:last], element, shape, contiguous_strides(shape)), last
    if end != len(body):
        raise ValueError(f"the file has {len(body) - end} bytes after its last tensor; expected none")
    return arrays


def _safetensor(name, entry):
    try:
        element, shape, (first, last) = entry["dtype"], check_shape(entry["shape"]), check_shape(entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"the tensor {name[:100]!r} has no valid dtype, shape and data_offsets") from error
    if type(element) is not str or element not in _SAFETENSORS:
        raise ValueError(
            f"the tensor {name[:100]!r} has the dtype {str(element)[:20]!r}; expected one of {', '.join(_SAFETENSORS)}"
        )
    return _SAFETENSORS[element], shape, (first, last)


def _entry(archive, info):
    """Reads at most the declared size of an entry, to defend against zip bombs; zipfile checks the CRC at the end."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
        raise ValueError(
            f"the zip entry {info.filename[:100]!r} is encrypted or compressed by another method than deflate"
        )
    with archive.open(info) as file:
        data = file.read(info.file_size) if info.file_size else b""
    if len(data) != info.file_size:
        raise ValueError(f"the zip entry {info.filename[:100]!r} is truncated")
    return data


def _torch_zip(archive, entries, root, file_size, weights):
    order = _entry(archive, entries[f"{root}byteorder"]) if f"{root}byteorder" in entries else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"the zip entry 'byteorder' is {order[:20]!r}; expected 'little' or 'big'")
    contents = load(io.BytesIO(_entry(archive, entries[f"{root}data.pkl"])), storage)

    def fetch(key):
        if f"{root}data/{key}" not in entries:
            raise ValueError(f"the storage {key[:40]!r} is missing from the file")
        return _entry(archive, entries[f"{root}data/{key}"])

    arrays = _arrays(named_tensors(contents, weights), fetch, file_size, ">" if order == b"big" else "<")
    return StateDict(arrays, class_names(contents))


def _legacy_storages(data, position, keys, storages):
    spans = {}
    for key in keys:
        if key not in storages:
            raise ValueError(f"the file contains the storage {key[:40]!r}, which no tensor uses")
        numel = int.from_bytes(data[position : position + 8], "little")
        end = position + 8 + numel * itemsize(storages[key].element)
        if end > len(data) or position + 8 > len(data):
            raise ValueError(f"the file is truncated in storage {key[:40]!r}")
        spans[key], position = (position + 8, end), end

    def fetch(key):
        if key not in spans:
            raise ValueError(f"the storage {key[:40]!r} is missing from the file")
        return memoryview(data)[slice(*spans[key])]

    return fetch


def _arrays(
    named: dict[str, Tensor | Array],
    fetch: Callable[[str], bytes | memoryview] | None,
    file_size: int,
    byteorder: str = "<",
) -> dict[str, np.ndarray]:
    """Creates the arrays, after checking that their total size is plausible for the size of the file."""
    numeric = {name: item for name, item in named.items() if isinstance(item, Tensor) or _is_numeric(name, item)}
    check_total(sum(8 * math.prod(item.shape) for item in numeric.values()), file_size)
    storages, arrays = {}, {}
    for name, item in numeric.items():
        try:
            if isinstance(item, Array):
                arrays[name] = _from_numpy(item)
            else:
                if item.storage.key not in storages:
                    storages[item.storage.key] = fetch(item.storage.key)
                arrays[name] = _from_torch(item, storages[item.storage.key], byteorder)
        except ValueError as error:
            raise ValueError(f"the tensor {name[:100]!r}: {error}") from error
    return arrays


def _is_numeric(name, item):
    if item.dtype is None:
        raise ValueError(f"the pickle creates the array {name[:100]!r} but never sets its data")
    return item.dtype.element is not None


def _from_torch(item, data, byteorder):
    size, declared = itemsize(item.storage.element), item.storage.numel
    if len(data) != declared * size:
        raise ValueError(f"the storage {item.storage.key[:40]!r} has {len(data)} bytes but declares {declared * size}")
    inside = memoryview(data)[item.storage.start * size : (item.storage.start + item.storage.length) * size]
    return to_array(inside, item.element, item.shape, item.strides, item.offset, byteorder)


def _from_numpy(item):
    element = item.dtype.element
    if len(item.raw) != math.prod(item.shape) * itemsize(element):
        needed = math.prod(item.shape) * itemsize(element)
        raise ValueError(f"the data has {len(item.raw)} bytes, but shape {item.shape} of type {element} needs {needed}")
    raw = item.raw.encode("latin-1") if isinstance(item.raw, str) else item.raw
    strides = contiguous_strides(item.shape, item.fortran)
    return to_array(raw, element, item.shape, strides, byteorder=item.dtype.byteorder)


def _npz(archive, entries, file_size):
    arrays, total = {}, 0
    for filename, info in entries.items():
        if not filename.endswith(".npy"):
            continue
        stream = io.BytesIO(_entry(archive, info))
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"the array {filename[:100]!r} has the .npy version {version}; expected (1, 0) or (2, 0)")
        shape, fortran, dtype = read_header[version](stream)
        if dtype.hasobject:
            raise ValueError(f"the array {filename[:100]!r} holds Python objects, not numbers; they could run code")
        shape, raw = check_shape(shape), stream.getbuffer()[stream.tell() :]
        element = dtype.name if dtype.kind in "fiub" and dtype.name in DTYPES else None
        if element is None:
            continue
        total += 8 * math.prod(shape)
        check_total(total, file_size)
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"the array {filename[:100]!r} has {len(raw)} bytes, which do not match its shape {shape}")
        byteorder = ">" if dtype.byteorder == ">" else "<"
        strides = contiguous_strides(shape, fortran)
        arrays[filename.removesuffix(".npy")] = to_array(raw, element, shape, strides, byteorder=byteorder)
    return arrays
