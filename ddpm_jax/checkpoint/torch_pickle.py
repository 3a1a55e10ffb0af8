"""PyTorch's .bin and .pth files without torch, and without ever running a pickle's code.

A pickle is a program for a stack machine. This machine knows the instructions that state dicts are made of, and the
names below, each of which stands for an inert object of ours: nothing is imported, nothing is looked up by name.
Whatever else a file asks for is refused by name. Both of torch's formats are read: the zip archive (since 1.6) and the
older stream of pickles.

A file cannot make us read beyond its own bytes, nor allocate a multiple of them: tensors are copied out of checked
bounds, and instructions, dimensions, texts and the bytes of all tensors are limited. Nothing that it builds is hashed,
compared or printed but short texts, so that nested structures are no trap.
"""

import dataclasses
import io
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
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
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
_MAX_PICKLE_BYTES = 64 * 2**20
_MAX_INSTRUCTIONS = 2_000_000  # a network of a thousand tensors needs some forty thousand
_MAX_DIMENSIONS = 64
_MAX_TEXT = 4096


def read_torch_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict that `torch.save` wrote.

    Args:
        path: a .bin, .pt or .pth file of either format.

    Returns:
        The tensors by their names, C-contiguous; bfloat16 as `ml_dtypes.bfloat16`.

    Raises:
        ValueError: a pickle that asks for anything but tensors (the message names what), a truncated or corrupt file, a
            file that holds no state dict.

    Example:
        >>> read_torch_pickle("diffusion_pytorch_model.bin")["conv_in.weight"].shape  # doctest: +SKIP
        (128, 3, 3, 3)
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LEGACY_START))
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if start[:4] == b"PK\x03\x04":
                content = _read_zip(file, size)
            elif start == _LEGACY_START:
                content = _read_legacy(file)
            else:
                raise _Refused("it is neither a zip archive nor a stream of pickles that torch wrote")
            return _state_dict(content, size)
    except _Refused as error:
        raise ValueError(f"{path} is refused: {error}.") from None
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        KeyError,
        IndexError,
        UnicodeError,
    ) as error:
        raise ValueError(f"{path} is truncated or corrupt: {error}. Download it again.") from error
    except (ValueError, TypeError, OverflowError, MemoryError, RuntimeError) as error:
        raise ValueError(f"{path} is corrupt: {error}. Download it again.") from error


class _Refused(Exception):
    """What the file asks for is not to be had here."""


def _shown(value: Any) -> str:
    """Show a value of the pickle in a message, without walking through it."""
    if value is None or type(value) in (bool, _Name):
        return str(value)
    if type(value) is str:
        return repr(value[:80])
    if type(value) is int and abs(value) < 2**64:
        return str(value)
    return f"a {type(value).__name__}"


@dataclasses.dataclass(frozen=True)
class _Name:
    """A global that is allowed. It does nothing; `_CALLS` says what calling it means."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass
class _Storage:
    """Bytes of the file, perhaps yet to come, as numbers of one dtype."""

    dtype: np.dtype
    count: int
    data: np.ndarray | None = None
    root: "_Storage | None" = None
    offset: int = 0

    def fill(self, buffer: bytes, big_endian: bool) -> None:
        size = self.dtype.itemsize
        if len(buffer) < self.count * size:
            raise _Refused(f"a storage of {self.count} numbers has {len(buffer)} bytes, not {self.count * size}")
        data = np.frombuffer(buffer, self.dtype, self.count)
        self.data = data.byteswap() if big_endian else data

    def numbers(self) -> np.ndarray:
        if self.root is not None:
            numbers = self.root.numbers()
            if self.offset < 0 or self.offset + self.count > len(numbers):
                raise _Refused("a view of a storage reaches beyond it")
            return numbers[self.offset : self.offset + self.count]
        if self.data is None:
            raise _Refused("a tensor's storage is not in the file")
        return self.data


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor that is built once all storages are there."""

    storage: _Storage
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
            raise _Refused(f"{name} has a negative or broken offset")
        if len(self.shape) != len(self.strides):
            raise _Refused(f"{name} has {len(self.shape)} sides and {len(self.strides)} strides")
        elements = 1
        for side in self.shape:
            elements *= side
        if elements == 0:
            return np.zeros(self.shape, numbers.dtype)
        reach = sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))
        if self.offset + reach + 1 > len(numbers):
            raise _Refused(f"{name} reaches beyond its storage of {len(numbers)} numbers")
        if elements > len(numbers):
            raise _Refused(f"{name} has more elements than its storage: an expanded tensor")
        steps = [stride * numbers.itemsize for stride in self.strides]
        view = np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, steps, writeable=False)
        return np.ascontiguousarray(view).reshape(self.shape)


def _rebuild_tensor(storage, offset, shape, strides, *_ignored) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise _Refused("a tensor is built from something that is no storage")
    return _Tensor(storage, offset, _sides(shape), _sides(strides))


def _sides(numbers: Any) -> tuple[int, ...]:
    """Check a shape or strides."""
    if type(numbers) not in (tuple, list) or len(numbers) > _MAX_DIMENSIONS:
        raise _Refused(f"a shape or stride is {_shown(numbers)} or has more than {_MAX_DIMENSIONS} sides")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise _Refused("a tensor has a negative or broken shape or stride")
    return tuple(numbers)


def _rebuild_tensor_v3(storage, offset, shape, strides, _grad, _hooks, dtype, *_ignored) -> _Tensor:
    if not isinstance(dtype, _Name) or dtype.module != "torch" or dtype.name not in _DTYPES:
        raise _Refused(f"a tensor has the dtype {_shown(dtype)}")
    tensor = _rebuild_tensor(storage, offset, shape, strides)
    return dataclasses.replace(tensor, dtype=_DTYPES[dtype.name])


def _parameter(data, *_ignored) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise _Refused("a parameter is built from something that is no tensor")
    return data


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if type(text) is not str or len(text) > _MAX_TEXT or encoding != "latin1":
        raise _Refused("_codecs.encode is called with something else than latin1 text")
    return text.encode("latin1")


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """Build a dict from pairs, as old Pythons pickled it, or an empty one."""
    if type(items) not in (tuple, list) or not all(type(item) in (tuple, list) and len(item) == 2 for item in items):
        raise _Refused("an OrderedDict is built from something that is no list of pairs")
    return {_key(key): value for key, value in items}


def _key(key: Any) -> str | int:
    """Allow what state dicts are keyed by; hashing anything else could take for ever."""
    if type(key) is str or (type(key) is int and 0 <= key < 2**31):
        return key
    raise _Refused(f"a dict has {_shown(key)} as a key")


# What calling an allowed name means here.
_CALLS: dict[_Name, Callable[..., Any]] = {
    _Name("collections", "OrderedDict"): _ordered_dict,
    _Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    _Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    _Name("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    _Name("torch._utils", "_rebuild_parameter"): _parameter,
    _Name("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    _Name("torch.nn.parameter", "Parameter"): _parameter,
    _Name("torch", "Size"): _sides,
    _Name("torch", "device"): lambda *where: None,
    _Name("_codecs", "encode"): _encode,
}
# Names that are only ever mentioned.
_MENTIONS = (
    {_Name("torch", name) for name in _STORAGES}
    | {_Name("torch", name) for name in _DTYPES}
    | {_Name("torch.storage", "TypedStorage"), _Name("torch.storage", "UntypedStorage")}
)


class _Mark:
    """Where a run of arguments begins on the stack."""


_MARK = _Mark()


class _Machine:
    """The stack machine of pickle, with only the instructions that state dicts need."""

    def __init__(self, load_storage: Callable[[Any], _Storage]):
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: io.BufferedIOBase) -> Any:
        """Execute one pickle, from where the file stands up to its STOP."""
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if number >= _MAX_INSTRUCTIONS:
                raise _Refused(f"its pickle has more than {_MAX_INSTRUCTIONS} instructions")
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
                    raise _Refused(f"its pickle uses the instruction {name}, which no state dict needs")
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
            raise _Refused(f"its pickle has the unknown protocol {argument}")

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
            raise _Refused(f"its pickle fills a {type(self.stack[-1]).__name__} as if it were a {kind.__name__}")
        return self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_allowed(module, name))

    def _stack_global(self, argument: None) -> None:
        module, name = self._take(2)
        self.stack.append(_allowed(module, name))

    def _reduce(self, argument: None) -> None:
        function, arguments = self._take(2)
        if not isinstance(function, _Name) or function not in _CALLS:
            raise _Refused(f"its pickle calls {_shown(function)}, which is no way to build a tensor")
        if not isinstance(arguments, tuple) or len(arguments) > 10:
            raise _Refused(f"its pickle calls {function} with something that is no tuple of arguments")
        self.stack.append(_CALLS[function](*arguments))

    def _build(self, argument: None) -> None:
        """Drop the state that a module's state_dict carries besides its tensors (`_metadata`)."""
        self._take(1)
        if not isinstance(self.stack[-1], dict | _Tensor):
            raise _Refused(f"its pickle sets the state of a {type(self.stack[-1]).__name__}")

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


def _allowed(module: Any, name: Any) -> _Name:
    if type(module) is not str or type(name) is not str:
        raise _Refused("its pickle asks for a name that is no text")
    known = _Name(module, name)
    if known not in _CALLS and known not in _MENTIONS:
        raise _Refused(f"its pickle asks for {str(known)[:200]}, which is not needed for tensors and may be an attack")
    return known


def _identity(identity: Any) -> tuple[_Name, str, int, Any]:
    """Take a persistent id apart: ("storage", type, key, location, count[, view])."""
    if type(identity) is not tuple or len(identity) not in (5, 6):
        raise _Refused(f"its pickle refers to {_shown(identity)}, which is no storage")
    word, kind, key, _, count, *view = identity
    if type(word) is not str or word != "storage" or type(key) is not str:
        raise _Refused(f"its pickle refers to {_shown(word)} {_shown(key)}, which is no storage")
    if not isinstance(kind, _Name) or kind.name not in _STORAGES:
        raise _Refused(f"its pickle has a storage of the type {_shown(kind)}")
    if type(count) is not int or not 0 <= count < 2**63:
        raise _Refused(f"its pickle has a storage of {_shown(count)} numbers")
    return kind, key, count, view[0] if view else None


def _read_zip(file: io.BufferedIOBase, size: int) -> Any:
    archive = zipfile.ZipFile(file)
    if sum(entry.file_size for entry in archive.infolist()) > size:  # a name twice, and overlapping entries
        raise _Refused("its archive's entries are larger than the file itself")
    entries = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise _Refused(f"its archive holds {entry.filename} twice")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise _Refused(f"its archive compresses {entry.filename}, which torch never does")
        entries[entry.filename] = entry
    roots = {name.partition("/")[0] for name in entries}
    if len(roots) != 1:
        raise _Refused("its archive has no single root folder")
    (root,) = roots
    if any(name.startswith((f"{root}/constants.pkl", f"{root}/code/")) for name in entries):
        raise _Refused("it is a TorchScript archive, which holds code; save the state dict instead")
    if f"{root}/data.pkl" not in entries:
        raise _Refused("its archive has no data.pkl: torch did not write it")
    if entries[f"{root}/data.pkl"].file_size > _MAX_PICKLE_BYTES:
        raise _Refused("its data.pkl is larger than any state dict's")
    byteorder = b"little"
    if f"{root}/byteorder" in entries:
        byteorder = archive.read(f"{root}/byteorder").strip()
    storages: dict[str, _Storage] = {}

    def load_storage(identity: Any) -> _Storage:
        kind, key, count, _ = _identity(identity)
        if key not in storages:
            storage = _Storage(_STORAGES[kind.name], count)
            storage.fill(archive.read(f"{root}/data/{key}"), byteorder == b"big")
            storages[key] = storage
        return storages[key]

    return _Machine(load_storage).run(io.BytesIO(archive.read(f"{root}/data.pkl")))


def _read_legacy(file: io.BufferedIOBase) -> Any:
    storages: dict[str, _Storage] = {}

    def load_storage(identity: Any) -> _Storage:
        kind, key, count, view = _identity(identity)
        root = storages.setdefault(key, _Storage(_STORAGES[kind.name], count))
        if view is None:
            return root
        if type(view) is not tuple or len(view) != 3:
            raise _Refused(f"a view of a storage is {_shown(view)}")
        _, offset, size = view
        if type(offset) is not int or type(size) is not int or size < 0:
            raise _Refused("a view of a storage has a broken offset or size")
        return _Storage(root.dtype, size, root=root, offset=offset)

    def refuse(identity: Any) -> _Storage:
        raise _Refused("its head refers to storages")

    _Machine(refuse).run(file)  # the magic number, checked already
    protocol = _Machine(refuse).run(file)
    if type(protocol) is not int or protocol != _LEGACY_PROTOCOL:
        raise _Refused(f"its format has the unknown version {_shown(protocol)}")
    system = _Machine(refuse).run(file)
    content = _Machine(load_storage).run(file)
    keys = _Machine(refuse).run(file)
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(keys) != len(storages):
        raise _Refused("its list of storages is broken")
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if count != storage.count:
            raise _Refused(f"storage {key} has {count} numbers here and {storage.count} there")
        storage.fill(file.read(count * storage.dtype.itemsize), big_endian)
    return content


def _state_dict(content: Any, size: int) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        raise _Refused(f"it holds a {type(content).__name__}, not a state dict of tensors by name")
    others = [_shown(name) for name, value in content.items() if not isinstance(value, _Tensor)]
    if others or not all(isinstance(name, str) for name in content):
        raise _Refused(f"it holds more than tensors by name ({', '.join(others[:5])}): no plain state dict")
    tensors, total = {}, 0
    for name, tensor in content.items():
        tensors[name] = tensor.build(name)
        total += tensors[name].nbytes
        if total > 4 * size:  # weights that are tied share their bytes in the file, and few are
            raise _Refused("its tensors are many copies of the same bytes")
    return tensors
