"""Reads pickles without executing their code: only constructors of `pickle_allowlist` can be called.

A subclass of `pickle.Unpickler` would not be safe: its BUILD opcode sets attributes on any object, and its C version
allocates as much memory as a memo index or a length declares. This reader implements the opcodes that pickles of
tensors need, and raises an error for all others.
"""

import codecs
import pickletools
from collections.abc import Callable
from typing import BinaryIO

from kerasdet.checkpoints.pickle_allowlist import Function, Opaque, lookup, set_state

MAX_OPCODES = 5_000_000
MAX_INT_BITS = 512
_MAX_ARGUMENTS = 16
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def load(stream: BinaryIO, persistent: Callable[[object], object] | None = None) -> object:
    """Reads one pickle from a stream, up to the pickle's end.

    Entries of dictionaries whose key is not a string are dropped. OrderedDict and defaultdict become dict. Sets and
    frozensets become lists, or `Opaque` objects in pickles of protocol 3 and older.

    Args:
        stream: In-memory binary stream.
        persistent: Function that creates an object from a persistent id. None: a persistent id raises an error.

    Returns:
        The object, made of plain containers, scalars and the classes of `pickle_allowlist` and `tensors`.

    Raises:
        ValueError: If the pickle is damaged or has too many opcodes, or asks for a name outside the allowlist.
    """
    machine = _Machine(persistent)
    for _ in range(MAX_OPCODES):
        opcode = _OPCODES.get(stream.read(1))
        if opcode is None:
            raise ValueError("the file holds a pickle that is truncated or damaged")
        if opcode.name == "STOP":
            return machine.stack.pop()
        step = _STEPS.get(opcode.name)
        if step is None:
            raise ValueError(
                f"the file contains a pickle with the opcode {opcode.name}, which pickles of tensors do not have"
            )
        step(machine, _argument(opcode, stream))
    raise ValueError(f"the file holds a pickle of more than {MAX_OPCODES} opcodes, the maximum for kerasdet")


def _argument(opcode, stream):
    if opcode.name == "STRING":
        return codecs.escape_decode(stream.readline().strip()[1:-1])[0].decode("latin-1")
    return opcode.arg.reader(stream) if opcode.arg else None


class _Machine:
    """Holds the stack, the marks and the memo of the pickle format; the methods implement its opcodes."""

    def __init__(self, persistent) -> None:
        self.stack, self.marked, self.memo, self.persistent = [], [], {}, persistent

    def push(self, value):
        self.stack.append(value)

    def push_int(self, value):
        if value.bit_length() > MAX_INT_BITS:
            raise ValueError(f"the pickle has an integer of more than {MAX_INT_BITS} bits, the maximum for kerasdet")
        self.stack.append(value)

    def mark(self, _):
        self.marked.append(self.stack)
        self.stack = []

    def since_mark(self):
        items, self.stack = self.stack, self.marked.pop()
        return items

    def pop(self, _):
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def take(self, count):
        if len(self.stack) < count:
            raise ValueError("the file holds a damaged pickle that pops from an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def put(self, index):
        self.memo[index] = self.stack[-1]

    def get(self, index):
        if index not in self.memo:
            raise ValueError("the file holds a damaged pickle that refers to an object before it is created")
        self.stack.append(self.memo[index])

    def extend(self, items):
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise ValueError(f"the pickle appends items to a {type(target).__name__}; expected a list")

    def update(self, items):
        target = self.stack[-1]
        if len(items) % 2 or not isinstance(target, (dict, Opaque)):
            raise ValueError(f"the pickle sets items of a {type(target).__name__}; expected a dictionary")
        if isinstance(target, dict):
            target.update(_named(items))

    def global_(self, pair):
        module, _, name = pair.partition(" ")
        self.stack.append(lookup(module, name))

    def stack_global(self, _):
        module, name = self.take(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("the pickle names a function or class by another object than a string")
        self.stack.append(lookup(module, name))

    def call(self, function, arguments):
        if not isinstance(function, Function):
            raise ValueError(
                f"the pickle calls an object of type {type(function).__name__}; expected a function that makes tensors "
                "or containers"
            )
        if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
            raise ValueError(f"the pickle calls {function.name} with arguments that torch and NumPy do not write")
        try:
            self.stack.append(function.call(*arguments))
        except TypeError as error:
            raise ValueError(
                f"the pickle calls {function.name} with arguments that torch and NumPy do not write"
            ) from error

    def instance(self, pair):
        module, _, name = pair.partition(" ")
        self.call(lookup(module, name), tuple(self.since_mark()))

    def object_(self, _):
        items = self.since_mark()
        self.call(items[0], tuple(items[1:]))

    def new_with_keywords(self, _):
        function, arguments, keywords = self.take(3)
        if keywords != {}:
            raise ValueError("the pickle calls a constructor with keyword arguments, which tensors do not need")
        self.call(function, arguments)

    def build(self, _):
        (state,) = self.take(1)
        set_state(self.stack[-1], state)

    def persistent_id(self, identity):
        if self.persistent is None:
            raise ValueError("the file holds a pickle with persistent ids, which only a torch file may have")
        self.stack.append(self.persistent(identity))

    def protocol(self, version):
        if version > 5:
            raise ValueError(f"the file holds a pickle of the unknown protocol {version} (0 to 5 are supported)")


def _named(items):
    return {key: value for key, value in zip(items[::2], items[1::2], strict=True) if type(key) is str}


def _dictionary(items):
    if len(items) % 2:
        raise ValueError("the file holds a damaged pickle with a key that has no value")
    return _named(items)


_INTS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_VALUES = (*_TEXTS, "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "FLOAT", "BINFLOAT")
_STEPS = {
    **dict.fromkeys(_INTS, _Machine.push_int),
    **dict.fromkeys(_VALUES, _Machine.push),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "PROTO": _Machine.protocol,
    "FRAME": lambda m, _: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": lambda m, _: m.since_mark() and None,
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_SET": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "FROZENSET": lambda m, _: m.push(m.since_mark()),
    "DICT": lambda m, _: m.push(_dictionary(m.since_mark())),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    "APPEND": lambda m, _: m.extend(m.take(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": lambda m, _: m.update(m.take(2)),
    "SETITEMS": lambda m, _: m.update(m.since_mark()),
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_id,
    "BINPERSID": lambda m, _: m.persistent_id(*m.take(1)),
}
