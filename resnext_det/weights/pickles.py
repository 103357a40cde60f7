"""Pickles of strangers, read without Python's unpickler: nothing that a file names is ever called.

A pickle is a program. :func:`read` runs the few instructions that build plain values, numpy arrays and torch tensors,
and makes the arrays itself: a dtype from :data:`DTYPES`, and bytes that are exactly as many as its shape asks for.
Everything else that a file names is refused by name (:class:`CodeInPickle`).
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

DTYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
"""Of numpy's arrays, beside fixed bytes (``S12``)."""

STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
"""Of torch's tensors."""

STEPS = 10_000_000
"""Most instructions of one pickle; the proposals of COCO's 118,287 images take about six million."""
DEPTH = 64
"""Most containers within each other."""
VALUES = 5_000_000
"""Most values of one pickle once every reference is followed; arrays and tensors count as one."""

_LONGEST_SIDE = 1 << 40


class Torn(Exception):
    """The pickle ends too early or makes no sense; the message says where."""


class CodeInPickle(Exception):
    """The pickle names a function or class other than the few that hold plain values; the message is that name."""


class TooMuch(Exception):
    """More steps, depth or values than any real file has."""


@dataclass(eq=False)
class _Global:
    """A name; it stands for nothing."""

    name: str


@dataclass(eq=False)
class _Dtype:
    code: str
    order: str = "<"

    def numpy(self) -> np.dtype | None:
        """None for one that is not read, such as objects."""
        if self.code in DTYPES or re.fullmatch(r"S[1-9]\d{0,3}", self.code):
            return np.dtype(f"{self.order}{self.code}")
        return None


@dataclass(eq=False)
class _Array:
    value: np.ndarray | Refused | None = None


class _Attributes(dict):
    """An argparse.Namespace, as a dictionary."""


@dataclass(frozen=True, eq=False)
class Refused:
    """Stands where an array or tensor would be, with the reason why it is none."""

    reason: str


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers that lie beside the pickle."""

    dtype: torch.dtype
    key: str
    numbers: int


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor whose numbers are not read yet."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self, storages: Mapping[str, bytearray]) -> Tensor | Refused:
        """The tensor, over the storage's bytes; what does not fit into them is refused."""
        data = storages[self.storage.key]
        last = self.offset + sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        itemsize = self.dtype.itemsize
        count = math.prod(self.shape)
        if count * itemsize > len(data) or count and (last + 1) * itemsize > len(data):
            return Refused(f"claims shape {self.shape} over fewer numbers; the file is refused")
        if not count:
            return torch.empty(self.shape, dtype=self.dtype)
        whole = torch.frombuffer(data, dtype=self.dtype, count=len(data) // itemsize)
        return whole.as_strided(self.shape, self.stride, self.offset)


def read(file: IO[bytes], size: int, *, encoding: str = "latin1") -> Any:
    """What the pickle at the place of ``file`` holds; the file is left behind its end.

    Args:
        size: of the file in bytes.
        encoding: of Python 2's strings, "latin1" for text or "bytes".

    Returns:
        Plain values, numpy arrays, and :class:`StoredTensor`. Text keys and values as they are; an OrderedDict and a
        Namespace become a dict.

    Raises:
        Torn, CodeInPickle, TooMuch: see there.
    """
    machine = _Machine(encoding, size)
    try:
        value = machine.run(file)
        return _plain(value, 0, [0])
    except (CodeInPickle, TooMuch, Torn):
        raise
    except RecursionError:
        raise TooMuch("values lie in each other too deep") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, EOFError) as error:
        raise Torn(type(error).__name__) from None


@dataclass
class _Machine:
    encoding: str
    size: int
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # heights of the stack
    memo: dict[int, Any] = field(default_factory=dict)
    copied: int = 0  # bytes and values that were made of others

    def run(self, file: IO[bytes]) -> Any:
        simple, push, memo, stack = _SIMPLE, self.stack.append, self.memo, self.stack
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if name in _PUSHED:
                push(argument)
            elif name in _GET:
                push(memo[argument])
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in _PUT:
                if argument > self.size:  # Python's own unpickler would make room for as many
                    raise TooMuch(f"object number {argument}")
                memo[argument] = stack[-1]
            elif name == "MARK":
                self.marks.append(len(stack))
            elif name == "STOP":
                return stack.pop()
            elif name in simple:
                simple[name](self, argument)
            else:
                raise CodeInPickle(f"pickle.{name}")
            if steps > STEPS:
                raise TooMuch(f"more than {STEPS} instructions")
        raise Torn("no end")

    def items(self) -> list[Any]:
        """What was pushed since the last mark."""
        height = self.marks.pop()
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def text(self, argument: str) -> None:
        """A string of Python 2."""
        self.stack.append(argument.encode("latin1") if self.encoding == "bytes" else argument)

    def long(self, argument: int) -> None:
        if argument.bit_length() > 128:
            raise TooMuch("a number of more than 128 bits")
        self.stack.append(argument)

    def tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise Torn("stack")
        self.stack[-count:] = [items]

    def make_dict(self, items: list[Any]) -> None:
        self.stack.append({})
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            _dict(target)[_key(key)] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise Torn("list")
        target += items

    def add(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, set):
            raise Torn("set")
        target.update(_key(item) for item in items)

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_global(module, name))

    def stack_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_global(_is(module, str), _is(name, str)))

    def charge(self, values: tuple) -> None:
        """Bytes and containers are copied once in a real file; the same ones again and again would fill the memory."""
        self.copied += sum(len(value) for value in values if isinstance(value, bytes | bytearray | str | dict | list))
        if self.copied > 4 * self.size + (1 << 20):
            raise TooMuch("copies of its own values")

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.charge(_is(arguments, tuple))
        self.stack.append(_build(_is(function, _Global).name, _is(arguments, tuple)))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        self.charge(state if isinstance(state, tuple) else (state,))
        if isinstance(target, _Dtype):
            _, order, fields, names, shape = _is(state, tuple)[:5]
            plain = (fields, names, shape) == (None, None, None) and order in ("<", ">", "=", "|")
            target.order, target.code = (order, target.code) if plain else ("<", "fields")
        elif isinstance(target, _Array):
            _, shape, dtype, fortran, data = _is(state, tuple)
            target.value = _array(dtype, shape, data, "F" if fortran is True else "C")
        elif isinstance(target, _Attributes):
            target.update({_key(key): value for key, value in _dict(state).items()})
        elif not isinstance(target, dict):  # a state_dict has attributes, which nobody needs
            raise CodeInPickle(f"{type(target).__name__}.__setstate__")

    def stored(self) -> None:
        pid = _is(self.stack.pop(), tuple)
        if len(pid) < 5 or pid[0] != "storage":
            raise Torn("a reference to another file")
        module, _, name = _is(pid[1], _Global).name.rpartition(".")
        key, numbers = str(pid[2]), _is(pid[4], int)
        if module not in ("torch", "torch.storage") or not re.fullmatch(r"\w{1,40}", key) or not 0 <= numbers < 1 << 50:
            raise Torn("storage")
        if name not in STORAGES:
            self.stack.append(Refused("is not a plain dense tensor; save the float model's state_dict()"))
        else:
            self.stack.append(Storage(STORAGES[name], key, numbers))


_PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG1", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_GET, _PUT = {"GET", "BINGET", "LONG_BINGET"}, {"PUT", "BINPUT", "LONG_BINPUT"}

_SIMPLE: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "LONG": _Machine.long,
    "LONG4": _Machine.long,
    "STRING": _Machine.text,
    "BINSTRING": _Machine.text,
    "SHORT_BINSTRING": _Machine.text,
    "POP": lambda m, a: m.stack.pop(),
    "POP_MARK": lambda m, a: m.items(),
    "DUP": lambda m, a: m.stack.append(m.stack[-1]),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_SET": lambda m, a: m.stack.append(set()),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "TUPLE1": lambda m, a: m.tuple_of(1),
    "TUPLE2": lambda m, a: m.tuple_of(2),
    "TUPLE3": lambda m, a: m.tuple_of(3),
    "TUPLE": lambda m, a: m.stack.append(tuple(m.items())),
    "LIST": lambda m, a: m.stack.append(m.items()),
    "DICT": lambda m, a: m.make_dict(m.items()),
    "FROZENSET": lambda m, a: m.stack.append({_key(item) for item in m.items()}),
    "APPEND": lambda m, a: m.append([m.stack.pop()]),
    "APPENDS": lambda m, a: m.append(m.items()),
    "SETITEM": lambda m, a: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "SETITEMS": lambda m, a: m.set_items(m.items()),
    "ADDITEMS": lambda m, a: m.add(m.items()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda m, a: m.stack_name(),
    "REDUCE": lambda m, a: m.reduce(),
    "NEWOBJ": lambda m, a: m.reduce(),
    "BUILD": lambda m, a: m.build(),
    "BINPERSID": lambda m, a: m.stored(),
}


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Torn(kind.__name__.strip("_").lower())
    return value


def _dict(value: Any) -> dict:
    if not isinstance(value, dict):
        raise Torn("dict")
    return value


def _key(value: Any) -> Any:
    """A key of a dictionary; hashing tuples in tuples in tuples would overflow Python's own stack."""
    if isinstance(value, str | bytes | int | float | None):
        return value
    if (
        type(value) is tuple
        and len(value) <= 64
        and all(isinstance(v, str | bytes | int | float | None) for v in value)
    ):
        return value
    raise Torn("key")


def _global(module: str, name: str) -> Any:
    full = f"{module}.{name}"
    if full in _BUILDERS or full in _NAMES or module in ("torch", "torch.storage") and name in STORAGES:
        return _Global(full)
    if module == "torch" and isinstance(getattr(torch, name, None) if name.isidentifier() else None, torch.dtype):
        return getattr(torch, name)
    if module == "torch" and name.endswith("Storage") and name.isidentifier():
        return _Global(full)
    raise CodeInPickle(full)


def _array(dtype: Any, shape: Any, data: Any, order: str) -> np.ndarray | Refused:
    """An array over a copy of ``data``, all of it."""
    kind = _is(dtype, _Dtype).numpy()
    if kind is None:
        named = {"O": "object", "O8": "object"}.get(dtype.code, dtype.code[:20])
        return Refused(f"is an array of {named}, not of numbers")
    if isinstance(data, str):
        data = data.encode("latin1")
    shape = (shape,) if type(shape) is int else _sides(shape)
    if not isinstance(data, bytes | bytearray) or math.prod(shape) * kind.itemsize != len(data) or len(shape) > 16:
        raise Torn("array")
    values = np.frombuffer(data, np.uint8).copy()
    if kind.kind == "b":  # a byte of 2 would be neither True nor False
        values = (values != 0).view(np.uint8)
    return values.view(kind).reshape(shape, order="F" if order == "F" else "C") if len(data) else np.empty(shape, kind)


def _sides(value: Any) -> tuple[int, ...]:
    if type(value) not in (tuple, list) or not all(type(v) is int and 0 <= v < _LONGEST_SIDE for v in value):
        raise Torn("shape")
    return tuple(value)


def _scalar(dtype: Any, data: Any = b"") -> Any:
    array = _array(dtype, (), data, "C")
    return array if isinstance(array, Refused) else array.item()


def _dtype(code: Any, *_: Any) -> _Dtype:
    code = code.decode("latin1") if isinstance(code, bytes) else _is(code, str)
    return _Dtype(code.lstrip("<=|"))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    return _is(text, str).encode("utf-8" if encoding in ("utf-8", "utf8") else "latin1")


def _mapping(content: Any = None, *_: Any) -> dict:
    """An OrderedDict from a dictionary, or from pairs, as protocol 0 to 2 write it."""
    if isinstance(content, dict):
        return dict(content)
    return {_key(key): value for key, value in (content or [])}


def _tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, *_: Any, dtype: torch.dtype | None = None
) -> StoredTensor | Refused:
    if isinstance(storage, Refused):
        return storage
    dtype = dtype or _is(storage, Storage).dtype
    shape, stride = _sides(shape), _sides(stride)
    if len(shape) != len(stride) or len(shape) > 16 or type(offset) is not int or not 0 <= offset < _LONGEST_SIDE:
        raise Torn("tensor")
    return StoredTensor(storage, dtype, offset, shape, stride)


def _tensor_of_dtype(storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any):
    return _tensor(storage, offset, shape, stride, dtype=_is(dtype, torch.dtype))


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    return _build(_is(function, _Global).name, _is(arguments, tuple))


def _not_dense(*_: Any) -> Refused:
    return Refused("is not a plain dense tensor; save the float model's state_dict()")


_NAMES = {"numpy.ndarray", "torch.nn.parameter.Parameter", "torch.Tensor", "torch._tensor.Tensor"}
"""Handed to the functions below and never called."""

_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "argparse.Namespace": lambda: _Attributes(),
    "_codecs.encode": _encode,
    "numpy.dtype": _dtype,
    "torch.Size": lambda sides=(): _sides(sides),
    "torch.device": lambda kind, number=0: str(kind),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.serialization._get_layout": lambda *_: None,
    "torch._utils._rebuild_sparse_tensor": _not_dense,
    "torch._utils._rebuild_sparse_csr_tensor": _not_dense,
    "torch._utils._rebuild_qtensor": _not_dense,
    "torch._utils._rebuild_nested_tensor": _not_dense,
    "torch._utils._rebuild_meta_tensor_no_storage": _not_dense,
}
for _core in ("numpy.core", "numpy._core"):  # numpy 1 and 2
    _BUILDERS[f"{_core}.multiarray._reconstruct"] = lambda *_: _Array()
    _BUILDERS[f"{_core}.multiarray.scalar"] = _scalar
    _BUILDERS[f"{_core}.numeric._frombuffer"] = lambda data, dtype, shape, order: _Array(
        _array(dtype, shape, data, order)
    )


def _build(name: str, arguments: tuple) -> Any:
    """Our own result in place of that function's, for the same arguments."""
    if name not in _BUILDERS:
        raise TypeError(name)
    return _BUILDERS[name](*arguments)


def _plain(value: Any, depth: int, seen: list[int]) -> Any:
    """``value`` without our placeholders, counted: references to references can make few bytes endless."""
    seen[0] += 1
    if depth > DEPTH or seen[0] > VALUES:
        raise TooMuch(f"more than {DEPTH} containers in each other, or {VALUES} values")
    if isinstance(value, dict):
        return {key: _plain(item, depth + 1, seen) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1, seen) for item in value]
    if type(value) is tuple:
        return tuple([_plain(item, depth + 1, seen) for item in value])
    if isinstance(value, _Array):
        if value.value is None:
            raise Torn("array")
        return value.value
    if isinstance(value, _Global | _Dtype | Storage):
        return None  # the name of a type, beside the weights
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return value


def read_torch_zip(file: IO[bytes]) -> tuple[Any, Callable[[StoredTensor], Tensor | Refused]]:
    """(content, what loads one of its tensors) of a file of ``torch.save``.

    Raises:
        Torn: also for a zip file of something else. CodeInPickle, TooMuch, zipfile.BadZipFile.
    """
    archive = zipfile.ZipFile(file)
    names = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Torn("no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if names.get(f"{root}byteorder") and archive.read(f"{root}byteorder") != b"little":
        raise Torn("big-endian")
    with archive.open(pickles[0]) as stream:
        data = stream.read()
    content = read(io.BytesIO(data), len(data))
    storages = _Records(archive, root)
    return content, lambda tensor: tensor.load(storages)


class _Records(dict):
    """{storage: its bytes}, read when it is asked for."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__()
        self.archive, self.root = archive, root

    def __missing__(self, key: str) -> bytearray:
        info = self.archive.getinfo(f"{self.root}data/{key}")
        data = bytearray(info.file_size)
        place = 0
        with self.archive.open(info) as stream:
            while block := stream.read(1 << 22):
                data[place : place + len(block)] = block
                place += len(block)
        if place != len(data) or len(data) != info.file_size:
            raise Torn("storage")
        self[key] = data
        return data


def read_torch_legacy(file: IO[bytes], size: int) -> tuple[Any, Callable[[StoredTensor], Tensor | Refused]]:
    """As :func:`read_torch_zip`, for the format of torch < 1.6: five pickles, then the storages one after another."""
    read(file, size)  # the magic number
    read(file, size)  # the version of the protocol
    system = read(file, size)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise Torn("big-endian")
    content = read(file, size)
    keys = read(file, size)
    found: dict[str, Storage] = {}
    _collect(content, found)
    storages: dict[str, bytearray] = {}
    for key in _is(keys, list):
        key = str(key)
        numbers = int.from_bytes(file.read(8), "little")
        if key not in found:  # only torch could say how long it is
            raise Torn("storage")
        length = numbers * found[key].dtype.itemsize
        if numbers != found[key].numbers or length > size:
            raise Torn("storage")
        data = bytearray(file.read(length))
        if len(data) < length:
            raise Torn("storage")
        storages[key] = data
    return content, lambda tensor: tensor.load(storages)


def _collect(value: Any, found: dict[str, Storage]) -> None:
    if isinstance(value, StoredTensor):
        found[value.storage.key] = value.storage
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        _collect(item, found)


def loaded(value: Any, load: Callable[[StoredTensor], Tensor | Refused]) -> Any:
    """``value`` with every tensor in it read.

    Raises:
        Torn: one of them is refused.
    """
    if isinstance(value, StoredTensor):
        value = load(value)
    if isinstance(value, Refused):
        raise Torn(value.reason)
    if isinstance(value, dict):
        return {key: loaded(item, load) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(loaded(item, load) for item in value)
    return value
