"""Runs the compiled ops without TensorFlow: on NumPy arrays or PyTorch tensors, on a CPU or a GPU.

First run `make -C custom_ops all emulation`: it builds the ops and the stand-in for TensorFlow.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parent
STAND_INS = FOLDER / "build" / "emulation"
SHIPPED = FOLDER.parent / "kerasdet" / "ops" / "_kerasdet_ops.so"
TYPES = {"float32": 1, "int32": 3, "uint8": 4, "bfloat16": 14, "float16": 19}  # TF_DataType


class _Attribute(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("number", ctypes.c_int64),
        ("real", ctypes.c_float),
        ("reals", ctypes.POINTER(ctypes.c_float)),
        ("num_reals", ctypes.c_int64),
    )


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("shape", ctypes.c_int64 * 8),
        ("data", ctypes.c_void_p),
    )


Scratch = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int64)


class Library:
    """Opens the ops of a library.

    Args:
        stand_in: Library that provides the functions of TensorFlow's C API which the ops call.
        scratch: Function that takes a number of bytes, allocates scratch memory on the device and returns its address.
            The memory must stay valid until the work of the next call begins. None allocates host memory.
    """

    def __init__(self, stand_in: ctypes.CDLL, scratch: Callable[[int], int] | None = None) -> None:
        self.functions = stand_in
        self.functions.fake_make.restype = ctypes.c_void_p
        self.functions.fake_call.restype = ctypes.c_bool
        self.scratch = Scratch(scratch) if scratch else None

    def op(self, name: str, device: str = "GPU", dtype: str = "float32", **attributes) -> "Op":
        """Creates a kernel of the op `Kerasdet>name`.

        Args:
            name: Name of the op without its prefix, such as "Nms".
            device: "CPU" or "GPU".
            dtype: The op's data type, a key of `TYPES`.
            **attributes: The op's attributes: ints, floats, bools or lists of floats.

        Returns:
            The kernel.

        Raises:
            ValueError: If no such kernel is registered, or if the kernel rejects an attribute.
        """
        error, count = ctypes.create_string_buffer(512), len(attributes)
        array = (_Attribute * count)(*(_attribute(*item) for item in attributes.items()))
        which = (f"Kerasdet>{name}".encode(), device.encode(), ctypes.c_int64(TYPES[dtype]))
        kernel = self.functions.fake_make(*which, array, ctypes.c_int64(count), error)
        if not kernel:
            raise ValueError(error.value.decode())
        return Op(self, kernel)

    def set_determinism(self, deterministic: bool) -> None:
        """Turns deterministic results on or off, like `tf.config.experimental.enable_op_determinism`."""
        self.functions.fake_set_determinism(ctypes.c_bool(deterministic))


class Op:
    """A kernel that reads inputs and writes to preallocated outputs."""

    def __init__(self, library: Library, kernel: int) -> None:
        self.library, self.kernel = library, ctypes.c_void_p(kernel)

    def prepare(self, inputs: list, outputs: list, stream: int = 0) -> Callable[[], None]:
        """Returns a function that runs the kernel and raises a ValueError if the kernel reports an error.

        Args:
            inputs: NumPy arrays or PyTorch tensors, on the kernel's device.
            outputs: Arrays or tensors that the kernel writes to, on the kernel's device.
            stream: Address of the CUDA stream; 0 is the default stream.
        """
        error, function = ctypes.create_string_buffer(512), self.library.functions.fake_call
        lists = [(_Tensor * len(values))(*map(_tensor, values)) for values in (inputs, outputs)]
        arguments = (self.kernel, lists[0], ctypes.c_int64(len(inputs)), lists[1], ctypes.c_int64(len(outputs)))
        arguments += (self.library.scratch, ctypes.c_void_p(stream), error)

        def call():
            if not function(*arguments):
                raise ValueError(error.value.decode())

        call.keeps = (inputs, outputs)
        return call

    def __call__(self, inputs: list, outputs: list, stream: int = 0) -> None:
        """Runs the kernel, see `prepare`. On a GPU it returns as soon as the work is queued."""
        self.prepare(inputs, outputs, stream)()


def open_emulated() -> Library:
    """Opens the GPU ops on an emulated GPU, which uses the host's memory."""
    return Library(ctypes.CDLL(str(STAND_INS / "gpu_ops.so")))


def open_shipped(scratch: Callable[[int], int] | None = None) -> Library:
    """Opens the installed library in a process without TensorFlow.

    Args:
        scratch: See `Library`.

    Raises:
        OSError: If the library or its stand-in is not built.
    """
    for path in (STAND_INS / "libtensorflow_framework.so.2", SHIPPED):
        if not path.exists():
            raise OSError(f"{path} does not exist. Run `make -C {FOLDER} all emulation` first.")
    stand_in = ctypes.CDLL(str(STAND_INS / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(SHIPPED))
    return Library(stand_in, scratch)


def _attribute(name, value):
    if isinstance(value, list):
        return _Attribute(name.encode(), 0, 0, (ctypes.c_float * len(value))(*value), len(value))
    return _Attribute(name.encode(), int(value) if isinstance(value, int) else 0, float(value), None, 0)


def _tensor(value):
    address = value.data_ptr() if hasattr(value, "data_ptr") else value.ctypes.data
    dtype = str(value.dtype).removeprefix("torch.")
    return _Tensor(TYPES[dtype], len(value.shape), (ctypes.c_int64 * 8)(*value.shape), address)
