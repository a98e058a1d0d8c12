"""Lists the names that a pickle may use, and maps each name to a harmless constructor of kerasdet.

A name outside `TABLE` raises an error, so a malicious pickle cannot import or call anything. The only exceptions are
names of the OpenMMLab packages, whose objects are stored beside the weights of a run: they become `Opaque` objects, and
these packages are not imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kerasdet.checkpoints.tensors import DTYPES, Storage, Tensor, check_shape, itemsize


@dataclass(frozen=True, eq=False, slots=True)
class Function:
    """Holds a function of the allowlist `TABLE`, which a pickle may call."""

    name: str
    call: Callable[..., Any]


@dataclass(frozen=True, eq=False, slots=True)
class Element:
    """Holds a torch dtype, or the element type of a torch storage class."""

    name: str


class Opaque:
    """Replaces objects that the reader does not need: optimizer options, counters, paths."""

    __slots__ = ()


@dataclass(eq=False, slots=True)
class Dtype:
    """Holds a pickled NumPy dtype; `element` is None if the dtype is not numeric."""

    element: str | None
    byteorder: str = "<"


@dataclass(eq=False, slots=True)
class Array:
    """Holds a pickled NumPy array with its raw bytes.

    Pickles of Python 2 hold the bytes as a latin-1 string. `dtype` is None until the pickle sets the data.
    """

    dtype: Dtype | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False
    raw: bytes | bytearray | str = b""


def lookup(module: str, name: str) -> Function | Element:
    """Looks up the constructor for a name in a pickle.

    Args:
        module: Name of the module, as Python 2 or 3 and NumPy 1 or 2 write it.
        name: Name of the object in the module.

    Returns:
        kerasdet's harmless constructor, which replaces the named object.

    Raises:
        ValueError: If the name is not in the allowlist `TABLE`.
    """
    spelling = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
    key = f"{spelling.replace('numpy._core.', 'numpy.core.')}.{name}" if len(spelling) + len(name) < 100 else ""
    if key not in TABLE and key.startswith(_OPENMMLAB):
        return Function(key, _opaque)
    if key not in TABLE:
        raise ValueError(
            f"the pickle asks for {f'{module}.{name}'[:100]!r}, which is refused because it could run code; "
            "kerasdet reads only tensors and plain containers"
        )
    return TABLE[key]


def set_state(target: object, state: object) -> None:
    """Executes the pickle opcode BUILD: completes a dtype or an array, and ignores the state of other objects.

    Args:
        target: Object that the pickle has created.
        state: State that the pickle sets.

    Raises:
        ValueError: If the state is invalid, or `target` is not an array, a dtype, a dict, a tensor or an opaque object.
    """
    if isinstance(target, Array):
        if type(state) is not tuple or len(state) != 5:
            raise ValueError(
                f"a NumPy array of the pickle has an invalid state of type {type(state).__name__}; expected a tuple "
                "(version, shape, dtype, order, data)"
            )
        _, shape, dtype, fortran, raw = state
        if isinstance(raw, list):
            raise ValueError(
                "the pickle contains a NumPy array of Python objects (dtype object), which could run "
                "code; expected numeric arrays"
            )
        if not isinstance(dtype, Dtype) or not isinstance(raw, (bytes, bytearray, str)):
            raise ValueError(
                f"a NumPy array of the pickle has a dtype of type {type(dtype).__name__} and data of type "
                f"{type(raw).__name__}; expected a NumPy dtype and bytes"
            )
        target.dtype, target.shape, target.fortran, target.raw = dtype, check_shape(shape), bool(fortran), raw
    elif isinstance(target, Dtype):
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise ValueError(
                f"a NumPy dtype of the pickle has an invalid state of type {type(state).__name__}; expected a tuple "
                "(version, byte order, ...) with the byte order <, >, = or |"
            )
        target.byteorder = ">" if state[1] == ">" else "<"
        if any(part is not None for part in state[2:5]):
            target.element = None
    elif not isinstance(target, (dict, Tensor, Opaque)):
        raise ValueError(
            f"the pickle sets the state of an object of type {type(target).__name__}; expected an array, a dtype, a "
            "tensor or a dictionary"
        )


def storage(identity: object) -> Storage:
    """Creates a reference to the tensor storage that a persistent id in a torch pickle identifies.

    Args:
        identity: `("storage", type, key, location, numel)`; the legacy format appends a view, `(key, start, length)`,
            or None.

    Returns:
        The storage, whose contents are not read yet.

    Raises:
        ValueError: If the id has another form, or its view extends beyond the storage.
    """
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise ValueError("the pickle has a persistent id of another form; expected that of a tensor storage")
    _, kind, key, _, numel = identity[:5]
    if not isinstance(kind, Element) or type(key) is not str or type(numel) is not int or numel < 0:
        raise ValueError(
            "the pickle identifies a tensor storage by values of the types "
            f"{', '.join(type(part).__name__ for part in (kind, key, numel))}; expected a storage class, a string "
            "and a number of elements, 0 or more"
        )
    start, length = 0, numel
    if len(identity) == 6 and identity[5] is not None:
        _, start, length = identity[5]
        if start < 0 or length < 0 or start + length > numel:
            raise ValueError(f"the storage {key[:40]!r} has a view that extends beyond its end")
    return Storage(key, kind.name, numel, start, length)


def _tensor_v2(data, offset, shape, strides, *_):
    return _tensor(data, offset, shape, strides, data.element if isinstance(data, Storage) else "")


def _tensor_v3(data, offset, shape, strides, _grad, _hooks, element, *_):
    return _tensor(data, offset, shape, strides, element.name if isinstance(element, Element) else "")


def _tensor(data, offset, shape, strides, element):
    shape, strides = check_shape(shape), check_shape(strides, "stride")
    if not isinstance(data, Storage) or element not in DTYPES:
        raise ValueError(
            f"the pickle makes a tensor from an object of type {type(data).__name__} with the dtype "
            f"{str(element)[:20]!r}; expected a storage and one of {', '.join(DTYPES)}"
        )
    if len(shape) != len(strides) or type(offset) is not int or offset < 0:
        raise ValueError(
            f"a tensor of shape {shape} has the strides {strides} and the offset "
            f"{offset if type(offset) is int else type(offset).__name__}; expected one stride for each axis, and "
            "an offset of 0 or more"
        )
    end = offset + 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and end * itemsize(element) > data.length * itemsize(data.element):
        raise ValueError(
            f"a tensor of shape {shape} extends outside its storage {data.key[:40]!r} of {data.length} elements"
        )
    return Tensor(data, element, offset, shape, strides)


def _parameter(data, *_):
    if not isinstance(data, Tensor):
        raise ValueError(f"a parameter of the pickle holds an object of type {type(data).__name__}; expected a tensor")
    return data


def _dtype(code, *_):
    if type(code) is not str:
        raise ValueError(
            f"a NumPy dtype of the pickle is named by an object of type {type(code).__name__}; expected a string "
            "such as 'f4'"
        )
    if code.startswith("O"):
        raise ValueError(
            "the pickle contains a NumPy array of Python objects (dtype object), which could run code; "
            "expected numeric arrays"
        )
    return Dtype("bool" if code == "b1" else _NUMPY_CODES.get(code))


def _reconstruct(kind, *_):
    if kind is not _NDARRAY:
        raise ValueError("the pickle contains an array of a subclass of numpy.ndarray; expected numpy.ndarray itself")
    return Array()


def _frombuffer(raw, dtype, shape, order="C"):
    array = Array()
    set_state(array, (1, shape, dtype, order == "F", raw))
    return array


def _encode(text, encoding="latin1"):
    """Returns the string unchanged, because an `Array` treats latin1 strings and bytes alike."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError(
            "the pickle calls _codecs.encode with other arguments than NumPy writes; expected a string and latin1"
        )
    return text


def _mapping(pairs=None):
    """Creates a dict from the pairs that Python 2 writes; clears the list, so that it cannot be copied repeatedly."""
    if pairs is None or type(pairs) is dict:
        return {} if pairs is None else pairs
    if type(pairs) is not list:
        raise ValueError("the pickle makes a dictionary from other values; expected (key, value) pairs")
    mapping = {}
    for pair in pairs:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise ValueError("the pickle makes a dictionary from other values; expected (key, value) pairs")
        if type(pair[0]) is str:
            mapping[pair[0]] = pair[1]
    pairs.clear()
    return mapping


def _opaque(*_):
    return Opaque()


def _getattr(owner, *_):
    if not isinstance(owner, Function) or not (owner.name in _OPAQUE or owner.name.startswith(_OPENMMLAB)):
        raise ValueError("the pickle asks for 'builtins.getattr', which is refused because it could run code")
    return Opaque()


def _reconstructor(kind, *_):
    if not isinstance(kind, Function) or kind.call is not _opaque:
        raise ValueError(
            f"the pickle asks for an object of {getattr(kind, 'name', type(kind).__name__)}, which is refused because "
            "it could run code"
        )
    return Opaque()


_NUMPY_CODES = {code: element for element, code in DTYPES.items() if element not in ("bfloat16", "bool")}
_NDARRAY = Function("numpy.ndarray", _opaque)
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "Untyped": "uint8",
}
_ALIASES = {"double": "float64", "float": "float32", "half": "float16", "long": "int64", "int": "int32"}
_OPENMMLAB = ("mmengine.", "mmcv.", "mmdet.", "addict.")
_OPAQUE = (
    "argparse.Namespace",
    "builtins.complex",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.object",
    "builtins.range",
    "builtins.set",
    "builtins.slice",
    "builtins.xrange",
    "collections.Counter",
    "collections.deque",
    "numpy.bool_",
    "numpy.core.multiarray.scalar",
    "numpy.float32",
    "numpy.float64",
    "numpy.int32",
    "numpy.int64",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "torch.device",
    "torch.torch_version.TorchVersion",
)
_CALLS = {
    "torch._utils._rebuild_tensor": _tensor_v2,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": lambda sizes=(): check_shape(sizes),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda *_: {},
    "addict.addict.Dict": _mapping,
    "mmcv.utils.config.ConfigDict": _mapping,
    "mmengine.config.config.ConfigDict": _mapping,
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy.core.numeric._frombuffer": _frombuffer,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
    "builtins.bytearray": lambda text="", encoding="latin-1": _encode(text, encoding),
    "builtins.bytes": lambda text="", encoding="latin-1": _encode(text, encoding),
    "builtins.getattr": _getattr,
    "copyreg._reconstructor": _reconstructor,
} | dict.fromkeys(_OPAQUE, _opaque)
TABLE = (
    {name: Function(name, call) for name, call in _CALLS.items()}
    | {"numpy.ndarray": _NDARRAY}
    | {f"torch.{prefix}Storage": Element(element) for prefix, element in _STORAGES.items()}
    | {"torch.storage.UntypedStorage": Element("uint8")}
    | {f"torch.{element}": Element(element) for element in DTYPES}
    | {f"torch.{alias}": Element(element) for alias, element in _ALIASES.items()}
)
