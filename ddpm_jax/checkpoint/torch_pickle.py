"""PyTorch's .bin and .pth files, read without torch and without running a pickle's code.

torch has two formats: a zip archive (since 1.6) and the older stream of pickles. `pickle_machine` executes the pickles,
which ask for storages; this module finds the storages' bytes. A file can neither make us read beyond its end nor make
us allocate a multiple of its size.
"""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.checkpoint.pickle_machine import STORAGES, Machine, Name, Refused, Storage, Tensor, shown

_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PROTOCOL = 1001
_MAX_PICKLE_BYTES = 64 * 2**20
_MAX_DEPTH = 8
_MAX_PREFIX = 256


def read_torch_pickle(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict that `torch.save` wrote, or the state dicts of a trainer's file.

    Args:
        path: a .bin, .pt, .pth or .ckpt file of either format.

    Returns:
        The tensors by their names, C-contiguous; bfloat16 as `ml_dtypes.bfloat16`. In nested dicts, such as
        {"model": {...}, "optimizer": {...}, "step": 5}, the names are dotted and values that are no tensors are left
        out.

    Raises:
        ValueError: the pickle asks for anything but tensors (the message names it), the file is truncated or corrupt,
            or it holds no state dict.

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
                content = _read_legacy(file, size)
            else:
                raise Refused("it is neither a zip archive nor a stream of pickles that torch wrote")
            return _state_dict(content, size)
    except Refused as error:
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


def _identity(identity: Any) -> tuple[Name, str, int, Any]:
    """Check and split a persistent id: ("storage", type, key, location, count[, view])."""
    if type(identity) is not tuple or len(identity) not in (5, 6):
        raise Refused(f"its pickle refers to {shown(identity)}, which is no storage")
    word, kind, key, _, count, *view = identity
    if type(word) is not str or word != "storage" or type(key) is not str:
        raise Refused(f"its pickle refers to {shown(word)} {shown(key)}, which is no storage")
    if not isinstance(kind, Name) or kind.name not in STORAGES:
        raise Refused(f"its pickle has a storage of the type {shown(kind)}")
    if type(count) is not int or not 0 <= count < 2**63:
        raise Refused(f"its pickle has a storage of {shown(count)} numbers")
    return kind, key, count, view[0] if view else None


def _read_zip(file: io.BufferedReader | io.BytesIO, size: int) -> Any:
    archive = zipfile.ZipFile(file)
    if sum(entry.file_size for entry in archive.infolist()) > size:  # a name twice, and overlapping entries
        raise Refused("its archive's entries are larger than the file itself")
    entries = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise Refused(f"its archive holds {entry.filename} twice")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"its archive compresses {entry.filename}, which torch never does")
        entries[entry.filename] = entry
    roots = {name.partition("/")[0] for name in entries}
    if len(roots) != 1:
        raise Refused("its archive has no single root folder")
    (root,) = roots
    if any(name.startswith((f"{root}/constants.pkl", f"{root}/code/")) for name in entries):
        raise Refused("it is a TorchScript archive, which holds code; save the state dict instead")
    if f"{root}/data.pkl" not in entries:
        raise Refused("its archive has no data.pkl: torch did not write it")
    if entries[f"{root}/data.pkl"].file_size > _MAX_PICKLE_BYTES:
        raise Refused("its data.pkl is larger than any state dict's")
    byteorder = b"little"
    if f"{root}/byteorder" in entries:
        byteorder = archive.read(f"{root}/byteorder").strip()
    storages: dict[str, Storage] = {}

    def load_storage(identity: Any) -> Storage:
        kind, key, count, _ = _identity(identity)
        if key not in storages:
            storage = Storage(STORAGES[kind.name], count)
            storage.fill(archive.read(f"{root}/data/{key}"), byteorder == b"big")
            storages[key] = storage
        return storages[key]

    return Machine(load_storage).run(io.BytesIO(archive.read(f"{root}/data.pkl")))


def _read_legacy(file: io.BufferedReader | io.BytesIO, size: int) -> Any:
    storages: dict[str, Storage] = {}

    def load_storage(identity: Any) -> Storage:
        kind, key, count, view = _identity(identity)
        root = storages.setdefault(key, Storage(STORAGES[kind.name], count))
        if view is None:
            return root
        if type(view) is not tuple or len(view) != 3:
            raise Refused(f"a view of a storage is {shown(view)}")
        _, offset, length = view
        if type(offset) is not int or type(length) is not int or length < 0:
            raise Refused("a view of a storage has a broken offset or size")
        return Storage(root.dtype, length, root=root, offset=offset)

    def refuse(identity: Any) -> Storage:
        raise Refused("its head refers to storages")

    Machine(refuse).run(file)  # the magic number, checked already
    protocol = Machine(refuse).run(file)
    if type(protocol) is not int or protocol != _LEGACY_PROTOCOL:
        raise Refused(f"its format has the unknown version {shown(protocol)}")
    system = Machine(refuse).run(file)
    content = Machine(load_storage).run(file)
    keys = Machine(refuse).run(file)
    if type(keys) is not list or not all(type(key) is str for key in keys) or len(keys) != len(storages):
        raise Refused("its list of storages is broken")
    big_endian = isinstance(system, dict) and system.get("little_endian") is False
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        storage = storages[key]
        if count != storage.count:
            raise Refused(f"storage {key} has {count} numbers here and {storage.count} there")
        wanted = count * storage.dtype.itemsize
        storage.fill(
            file.read(min(wanted, size)), big_endian
        )  # no buffer larger than the file; `fill` reports missing bytes
    return content


def _state_dict(content: Any, size: int) -> dict[str, np.ndarray]:
    if not isinstance(content, dict):
        raise Refused(f"it holds a {type(content).__name__}, not a state dict of tensors by name")
    if any(isinstance(value, dict) for value in content.values()):
        content = _leaves(content)
    others = [shown(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(name, str) for name in content):
        raise Refused(f"it holds more than tensors by name ({', '.join(others[:5])}): save the state dict alone")
    tensors, total = {}, 0
    for name, tensor in content.items():
        tensors[name] = tensor.build(name)
        total += tensors[name].nbytes
        if total > 4 * size:  # tied weights share their bytes, but few weights are tied
            raise Refused("its tensors are many copies of the same bytes")
    return tensors


def _leaves(content: dict[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of nested dicts by dotted names; a dict that occurs twice is read once."""
    leaves: dict[str, Tensor] = {}
    waiting, seen = [("", content, 0)], {id(content)}
    while waiting:
        prefix, items, depth = waiting.pop()
        if depth > _MAX_DEPTH or len(prefix) > _MAX_PREFIX:
            raise Refused(f"its dicts are nested more than {_MAX_DEPTH} deep, or under long names")
        for key, value in items.items():
            if isinstance(value, Tensor) and leaves.setdefault(f"{prefix}{key}", value) is not value:
                raise Refused(f"it holds {shown(f'{prefix}{key}')} twice")
            if isinstance(value, dict) and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{prefix}{key}.", value, depth + 1))
    if not leaves:
        raise Refused("it holds no tensor")
    return leaves
