"""Elements of a tensor in a file, and the NumPy array they become."""

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
_GROWTH = 16
_HEADROOM = 64 * 2**20


@dataclass(eq=False, slots=True)
class Storage:
    """A run of elements that a torch file keeps under `key`; a tensor sees `length` of its `numel` from `start`."""

    key: str
    element: str
    numel: int
    start: int
    length: int


@dataclass(eq=False, slots=True)
class Tensor:
    """A strided view of a storage, counted in elements; nothing is read before it is asked for."""

    storage: Storage
    element: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def itemsize(element: str) -> int:
    """Bytes of one element.

    Args:
        element: A key of `DTYPES`.

    Returns:
        The size in bytes.
    """
    return np.dtype(DTYPES[element]).itemsize


def check_total(total: int, file_size: int) -> None:
    """Refuses contents out of all proportion to the file that declares them.

    Args:
        total: Bytes that the contents would take.
        file_size: Bytes of the file.

    Raises:
        ValueError: More than 16 times the file and 64 MiB.
    """
    if total > _GROWTH * file_size + _HEADROOM:
        raise ValueError(f"declares {total:.3g} bytes of contents in a file of {file_size} bytes; refused as a bomb")


def check_shape(shape: object, what: str = "shape") -> tuple[int, ...]:
    """Takes a sequence of sizes, strides or the like from a file.

    Args:
        shape: What the file holds.
        what: Its name in the error.

    Returns:
        The same as a tuple of non-negative ints.

    Raises:
        ValueError: It is anything else.
    """
    if type(shape) not in (tuple, list) or len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"a tensor's {what} is not a tuple of at most {MAX_DIMS} non-negative integers")
    return tuple(shape)


def contiguous_strides(shape: Sequence[int], fortran: bool = False) -> tuple[int, ...]:
    """Strides of a dense array.

    Args:
        shape: Its shape.
        fortran: Whether the first dimension is the fastest.

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
    """Copies a strided view of a buffer into an array of its own.

    Args:
        buffer: The bytes.
        element: A key of `DTYPES`.
        shape: Shape of the view.
        strides: One for each dimension, in elements.
        offset: The first element.
        byteorder: `<` or `>`.

    Returns:
        A contiguous array in native byte order: float32 for any float, else the element's own type.

    Raises:
        ValueError: The view does not lie inside the buffer.
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
