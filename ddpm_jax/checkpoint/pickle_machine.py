"""A stack machine that reads torch's pickles and can build only tensors, dicts and lists.

A pickle is a program. This machine has only the instructions that state dicts need, and only the names in `_CALLS` and
`_MENTIONS`. Each name stands for an inert object of ours; nothing is imported or looked up. Everything else is refused
by its name. Of what a pickle builds, only short texts and small integers are hashed, compared or printed. Instructions,
dimensions and texts are limited. So nested structures cannot stall the machine.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
    "ComplexFloatStorage": np.dtype(np.complex64),
    "ComplexDoubleStorage": np.dtype(np.complex128),
    "UntypedStorage": np.dtype(np.uint8),
}
_DTYPES = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "int16": np.dtype(np.int16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "bool": np.dtype(np.bool_),
    "complex64": np.dtype(np.complex64),
    "complex128": np.dtype(np.complex128),
}
_MAX_INSTRUCTIONS = 2_000_000  # a network of a thousand tensors needs some forty thousand
_MAX_DIMENSIONS = 64
_MAX_TEXT = 4096
_MAX_SEARCHED = 64 * 2**20


# Libraries whose classes trainers often save beside the tensors.
_LIBRARIES = ("torch.nn.", "torch.optim.", "numpy.core.", "numpy._core.", "diffusers.", "transformers.", "accelerate.")
_LIBRARIES += ("lightning.", "pytorch_lightning.", "omegaconf.", "argparse.", "pathlib.", "collections.")
_MODULE_MARK = b"_forward_pre_hooks"  # stands in the state of every torch.nn.Module


class Refused(Exception):
    """The file asks for something that is refused."""


class Foreign(Refused):
    """The file asks for a class or function that tensors do not need."""

    def __init__(self, name: str):
        self.name = name
        super().__init__(f"its pickle asks for {name}, which is not needed for tensors and may be an attack")

    def explained(self, rest: bytes) -> Refused:
        """Return a better message, by searching the rest of the pickle as text, without running it."""
        way_out = "in torch, `torch.save(model.state_dict(), path)` saves the tensors alone"
        if _MODULE_MARK in rest:
            return Refused(f"it holds a whole network of torch ({self.name}), whose code is not run; {way_out}")
        if self.name.startswith(_LIBRARIES):
            return Refused(f"its pickle asks for {self.name}, which is not needed for tensors; {way_out}")
        return self


def shown(value: Any) -> str:
    """Return a value of the pickle as text for a message, without looking inside it."""
    if value is None or type(value) in (bool, Name):
        return str(value)
    if type(value) is str:
        return repr(value[:80])
    if type(value) is int and abs(value) < 2**64:
        return str(value)
    return f"a {type(value).__name__}"


@dataclasses.dataclass(frozen=True)
class Name:
    """An allowed global. It does nothing by itself; `_CALLS` says what calling it does."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass
class Storage:
    """Numbers of one dtype, whose bytes may still have to be read."""

    dtype: np.dtype
    count: int
    data: np.ndarray | None = None
    root: "Storage | None" = None
    offset: int = 0

    def fill(self, buffer: bytes, big_endian: bool) -> None:
        size = self.dtype.itemsize
        if len(buffer) < self.count * size:
            raise Refused(f"a storage of {self.count} numbers has {len(buffer)} bytes, not {self.count * size}")
        data = np.frombuffer(buffer, self.dtype, self.count)
        self.data = data.byteswap() if big_endian else data

    def numbers(self) -> np.ndarray:
        if self.root is not None:
            numbers = self.root.numbers()
            if self.offset < 0 or self.offset + self.count > len(numbers):
                raise Refused("a view of a storage reaches beyond it")
            return numbers[self.offset : self.offset + self.count]
        if self.data is None:
            raise Refused("a tensor's storage is not in the file")
        return self.data


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that is built when all storages have been read."""

    storage: Storage
    offset: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype | None = None

    def build(self, name: str) -> np.ndarray:
        numbers = self.storage.numbers()
        if self.dtype is not None:
            usable = len(numbers) // self.dtype.itemsize * self.dtype.itemsize
            numbers = numbers[:usable].view(self.dtype)
        if type(self.offset) is not int or self.offset < 0:
            raise Refused(f"{name} has a negative or broken offset")
        if len(self.shape) != len(self.strides):
            raise Refused(f"{name} has {len(self.shape)} sides and {len(self.strides)} strides")
        elements = 1
        for side in self.shape:
            elements *= side
        if elements == 0:
            return np.zeros(self.shape, numbers.dtype)
        reach = sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        if self.offset + reach + 1 > len(numbers):
            raise Refused(f"{name} reaches beyond its storage of {len(numbers)} numbers")
        if elements > len(numbers):
            raise Refused(f"{name} has more elements than its storage: an expanded tensor")
        steps = [stride * numbers.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False)
        return np.ascontiguousarray(view).reshape(self.shape)


def _rebuild_tensor(storage, offset, shape, strides, *_ignored) -> Tensor:
    if not isinstance(storage, Storage):
        raise Refused("a tensor is built from something that is no storage")
    return Tensor(storage, offset, _sides(shape), _sides(strides))


def _sides(numbers: Any) -> tuple[int, ...]:
    """Check a shape or strides."""
    if type(numbers) not in (tuple, list) or len(numbers) > _MAX_DIMENSIONS:
        raise Refused(f"a shape or stride is {shown(numbers)} or has more than {_MAX_DIMENSIONS} sides")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise Refused("a tensor has a negative or broken shape or stride")
    return tuple(numbers)


def _rebuild_tensor_v3(storage, offset, shape, strides, _grad, _hooks, dtype, *_ignored) -> Tensor:
    if not isinstance(dtype, Name) or dtype.module != "torch" or dtype.name not in _DTYPES:
        raise Refused(f"a tensor has the dtype {shown(dtype)}")
    tensor = _rebuild_tensor(storage, offset, shape, strides)
    return dataclasses.replace(tensor, dtype=_DTYPES[dtype.name])


def _parameter(data, *_ignored) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("a parameter is built from something that is no tensor")
    return data


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or len(text) > _MAX_TEXT or encoding != "latin1":
        raise Refused("_codecs.encode is called with something else than latin1 text")
    return text.encode("latin1")


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """Build a dict, empty or from pairs, as old versions of Python pickled it."""
    if type(items) not in (tuple, list) or not all(type(item) in (tuple, list) and len(item) == 2 for item in items):
        raise Refused("an OrderedDict is built from something that is no list of pairs")
    return {_key(key): value for key, value in items}


def _key(key: Any) -> str | int:
    """Allow only keys of state dicts; hashing other objects could take forever."""
    if type(key) is str or (type(key) is int and 0 <= key < 2**31):
        return key
    raise Refused(f"a dict has {shown(key)} as a key")


# What calling an allowed name does.
_CALLS: dict[Name, Callable[..., Any]] = {
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    Name("torch._utils", "_rebuild_parameter"): _parameter,
    Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    Name("torch.nn.parameter", "Parameter"): _parameter,
    Name("torch", "Size"): _sides,
    Name("torch", "device"): lambda *where: None,
    Name("_codecs", "encode"): _encode,
}
# Names that may be mentioned but not called.
_MENTIONS = (
    {Name("torch", name) for name in STORAGES}
    | {Name("torch", name) for name in _DTYPES}
    | {Name("torch.storage", "TypedStorage"), Name("torch.storage", "UntypedStorage")}
)


class _Mark:
    """Marks on the stack where a group of arguments begins."""


_MARK = _Mark()


class Machine:
    """The stack machine of pickle, with only the instructions that state dicts need."""

    def __init__(self, load_storage: Callable[[Any], Storage]):
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: io.BufferedReader | io.BytesIO) -> Any:
        """Execute one pickle, from the file's position to its STOP."""
        try:
            return self._run(file)
        except Foreign as error:
            raise error.explained(file.read(_MAX_SEARCHED)) from None

    def _run(self, file: io.BufferedReader | io.BytesIO) -> Any:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number >= _MAX_INSTRUCTIONS:
                raise Refused(f"its pickle has more than {_MAX_INSTRUCTIONS} instructions")
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _LITERALS:
                self.stack.append(argument)
            else:
                step = getattr(self, f"_{name.lower()}", None) if name in _STEPS else None
                if step is None:
                    raise Refused(f"its pickle uses the instruction {name}, which no state dict needs")
                step(argument)
        raise EOFError("the pickle has no end")

    def _since_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise EOFError("the pickle lacks a mark")

    def _proto(self, argument: int) -> None:
        if argument > 5:
            raise Refused(f"its pickle has the unknown protocol {argument}")

    def _frame(self, argument: int) -> None:
        pass

    def _mark(self, argument: None) -> None:
        self.stack.append(_MARK)

    def _pop(self, argument: None) -> None:
        self.stack.pop()

    def _binput(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    _long_binput = _binput

    def _memoize(self, argument: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _binget(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    _long_binget = _binget

    def _tuple(self, argument: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _take(self, count: int) -> tuple[Any, ...]:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise EOFError("the pickle's stack is empty")
        del self.stack[-count:]
        return items

    def _tuple1(self, argument: None) -> None:
        self.stack.append(self._take(1))

    def _tuple2(self, argument: None) -> None:
        self.stack.append(self._take(2))

    def _tuple3(self, argument: None) -> None:
        self.stack.append(self._take(3))

    def _list(self, argument: None) -> None:
        self.stack.append(self._since_mark())

    def _append(self, argument: None) -> None:
        (item,) = self._take(1)
        self._target(list).append(item)

    def _appends(self, argument: None) -> None:
        items = self._since_mark()
        self._target(list).extend(items)

    def _setitem(self, argument: None) -> None:
        key, value = self._take(2)
        self._target(dict)[_key(key)] = value

    def _setitems(self, argument: None) -> None:
        items = self._since_mark()
        keys = [_key(key) for key in items[::2]]
        self._target(dict).update(zip(keys, items[1::2], strict=True))

    def _target(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"its pickle fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_allowed(module, name))

    def _stack_global(self, argument: None) -> None:
        module, name = self._take(2)
        self.stack.append(_allowed(module, name))

    def _reduce(self, argument: None) -> None:
        function, arguments = self._take(2)
        if not isinstance(function, Name) or function not in _CALLS:
            raise Refused(f"its pickle calls {shown(function)}, which is no way to build a tensor")
        if not isinstance(arguments, tuple) or len(arguments) > 10:
            raise Refused(f"its pickle calls {function} with something that is no tuple of arguments")
        self.stack.append(_CALLS[function](*arguments))

    def _build(self, argument: None) -> None:
        """Drop what a module's state dict has besides its tensors (`_metadata`)."""
        self._take(1)
        if not isinstance(self.stack[-1], dict | Tensor):
            raise Refused(f"its pickle sets the state of a {type(self.stack[-1]).__name__}")

    def _binpersid(self, argument: None) -> None:
        (identity,) = self._take(1)
        self.stack.append(self.load_storage(identity))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES".split()
)
_STEPS = frozenset(
    "PROTO FRAME MARK POP BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET TUPLE TUPLE1 TUPLE2 TUPLE3 LIST APPEND "
    "APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID".split()
)


def _allowed(module: Any, name: Any) -> Name:
    if type(module) is not str or type(name) is not str:
        raise Refused("its pickle asks for a name that is no text")
    known = Name(module, name)
    if known not in _CALLS and known not in _MENTIONS:
        raise Foreign(str(known)[:200])
    return known
