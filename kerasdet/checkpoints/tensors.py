"""Describes tensors in a file and converts their bytes to NumPy arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DTYPES = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "u2",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "bool": "u1",
}
FLOATS = ("float64", "float32", "float16")
MAX_DIMS = 32
# Contents may be larger than their file, because of compression and expanded views. These limits allow for that, and
# reject files that could fill the memory.
_MAX_GROWTH = 16
_HEADROOM = 64 * 2**20


@dataclass(eq=False, slots=True)
class Storage:
    """Describes a storage of a torch file, the flat array of which tensors are views.

    Args:
        key: Name of the storage in the file.
        element: Type of the elements, a key of `DTYPES`.
        numel: Number of elements.
        start: Index of the first element that tensors may use. 0, except for views in the legacy format.
        length: Number of elements that tensors may use.
    """

    key: str
    element: str
    numel: int
    start: int
    length: int


@dataclass(eq=False, slots=True)
class Tensor:
    """Describes a tensor of a torch file, a strided view of a storage. Its contents are not read yet.

    Args:
        storage: The storage.
        element: Type of the elements, a key of `DTYPES`.
        offset: Index of the tensor's first element, counted from `Storage.start`.
        shape: Shape of the tensor.
        strides: Stride of each dimension, in elements.
    """

    storage: Storage
    element: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def itemsize(element: str) -> int:
    """Returns the size of an element in memory.

    Args:
        element: Type of the element, a key of `DTYPES`.

    Returns:
        The size in bytes.
    """
    return np.dtype(DTYPES[element]).itemsize


def check_total(total: int, file_size: int) -> None:
    """Checks that the contents are not implausibly large for their file, before any memory is allocated.

    Args:
        total: Size of the contents in bytes.
        file_size: Size of the file in bytes.

    Raises:
        ValueError: If the contents are larger than 16 times the size of the file plus 64 MiB.
    """
    if total > _MAX_GROWTH * file_size + _HEADROOM:
        raise ValueError(
            f"the file has {file_size} bytes but declares {total:.3g} bytes of contents, which are not read because "
            "they could fill the memory"
        )


def check_shape(shape: object, what: str = "shape") -> tuple[int, ...]:
    """Checks that an object from a file is a sequence of sizes or strides.

    Args:
        shape: Object from the file.
        what: Name of the object in the error message.

    Returns:
        The sequence as a tuple of non-negative ints.

    Raises:
        ValueError: If the object is not a tuple or list of at most 32 non-negative integers.
    """
    if type(shape) not in (tuple, list) or len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"a tensor's {what} is not a tuple of at most {MAX_DIMS} non-negative integers")
    return tuple(shape)


def contiguous_strides(shape: Sequence[int], fortran: bool = False) -> tuple[int, ...]:
    """Returns the strides of a dense array.

    Args:
        shape: Shape of the array.
        fortran: Whether the array is column-major (Fortran order); otherwise it is row-major (C order).

    Returns:
        One stride for each dimension, in elements.
    """
    strides, step = [], 1
    for size in shape if fortran else reversed(shape):
        strides.append(step)
        step *= size
    return tuple(strides if fortran else reversed(strides))


def to_array(
    buffer: bytes | memoryview,
    element: str,
    shape: Sequence[int],
    strides: Sequence[int],
    offset: int = 0,
    byteorder: str = "<",
) -> np.ndarray:
    """Copies a strided view of a buffer into a new array.

    Args:
        buffer: Bytes of the storage.
        element: Type of the elements, a key of `DTYPES`.
        shape: Shape of the view.
        strides: Stride of each dimension, in elements.
        offset: Index of the view's first element in the buffer, in elements.
        byteorder: `<` for little-endian, `>` for big-endian bytes.

    Returns:
        A contiguous array in native byte order: float32 for floats of any size, otherwise the dtype of the elements.

    Raises:
        ValueError: If the view extends beyond the buffer.
    """
    dtype = np.dtype(byteorder + DTYPES[element])
    steps = [0 if size == 1 else stride * dtype.itemsize for size, stride in zip(shape, strides, strict=True)]
    if 0 in shape:
        view = np.zeros(tuple(shape), dtype)
    else:
        view = np.ndarray(tuple(shape), dtype, buffer, offset * dtype.itemsize, steps)
    if element in FLOATS:
        with np.errstate(over="ignore", invalid="ignore"):
            return view.astype(np.float32, order="C")
    if element == "bfloat16":
        return (view.astype(np.uint32, order="C") << np.uint32(16)).view(np.float32)
    if element == "bool":
        return np.asarray(view != 0, order="C")
    return view.astype(dtype.newbyteorder("="), order="C")
