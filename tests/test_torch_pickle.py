"""PyTorch's files without torch: what torch wrote is read bit for bit, and attacks are refused by name."""

import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ddpm_jax.checkpoint import read_torch_pickle

ORACLES = Path(__file__).parent / "oracles"


@pytest.mark.parametrize("name", ["pickle_zip.bin", "pickle_legacy.bin"])
def test_equals_what_torch_saved(name):
    expected = np.load(ORACLES / "pickle_expected.npz")
    tensors = read_torch_pickle(ORACLES / name)
    assert list(tensors) == expected.files
    for key, value in tensors.items():
        assert value.flags.c_contiguous
        if key == "bfloat16":
            assert value.dtype == ml_dtypes.bfloat16
            value = value.astype(np.float32)
        assert value.dtype == expected[key].dtype and value.shape == expected[key].shape, key
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_a_modules_state_dict():
    tensors = read_torch_pickle(ORACLES / "module_zip.bin")
    assert {name: value.shape for name, value in tensors.items()} == {
        **{"0.weight": (3, 2), "0.bias": (3,)},
        **{"1.weight": (3,), "1.bias": (3,), "1.running_mean": (3,), "1.running_var": (3,)},
        "1.num_batches_tracked": (),
    }


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_live_against_torch(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(4, 4).bfloat16(), torch.nn.Embedding(3, 2))
    torch.save(net.state_dict(), tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    tensors = read_torch_pickle(tmp_path / "x.bin")
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(tensors[name].astype(np.float32), tensor.float().numpy())


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_live_what_is_no_state_dict(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    path, save = tmp_path / "x.bin", lambda item: torch.save(item, path, _use_new_zipfile_serialization=zipped)
    save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "loss": 0.5})
    tensors = read_torch_pickle(path)
    np.testing.assert_array_equal(tensors["model.weight"], net.weight.detach().numpy())
    assert "optimizer.state.0.exp_avg" in tensors
    for whole in (net, torch.nn.DataParallel(net), {"model": net}):
        save(whole)
        with pytest.raises(ValueError, match="a whole network of torch"):
            read_torch_pickle(path)
    save(optimizer)
    with pytest.raises(ValueError, match="asks for torch.optim.adamw.AdamW, which is not needed for tensors; in torch"):
        read_torch_pickle(path)


class Storage:
    """Something whose pickle is a persistent id, as torch's storages are."""

    def __init__(self, count=4, kind="FloatStorage", key="0"):
        self.identity = ("storage", Global("torch", kind), key, "cpu", count)


class Global:
    """Pickled as a bare global of any name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of any global."""

    def __init__(self, module, name, *arguments, state=None):
        self.function, self.arguments, self.state = Global(module, name), arguments, state


class Pickler(pickle._Pickler):
    """The pure-Python pickler, taught to write what an attacker may write."""

    def persistent_id(self, item):
        return item.identity if isinstance(item, Storage) else None

    def save(self, item, save_persistent_id=True):
        if isinstance(item, Global):
            self.write(pickle.GLOBAL + f"{item.module}\n{item.name}\n".encode())
        elif isinstance(item, Call):
            self.save(item.function)
            self.save(tuple(item.arguments))
            self.write(pickle.REDUCE)
            if item.state is not None:
                self.save(item.state)
                self.write(pickle.BUILD)
        else:
            super().save(item, save_persistent_id)


def tensor(storage=None, offset=0, shape=(2, 2), strides=(2, 1)):
    return Call(
        "torch._utils", "_rebuild_tensor_v2", storage or Storage(), offset, shape, strides, False, OrderedDict()
    )


def write(path, content=None, *, data=None, storages=None, compress=zipfile.ZIP_STORED, extra=(), protocol=2):
    """A zip as torch writes it, around any pickle."""
    import io

    buffer = io.BytesIO()
    if data is None:
        Pickler(buffer, protocol).dump(content)
        data = buffer.getvalue()
    storages = {"0": np.arange(4, dtype=np.float32).tobytes()} if storages is None else storages
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for name, text in extra:
            archive.writestr(name, text)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def test_the_forger_writes_what_is_read(tmp_path):
    """So that the attacks below fail for their own sake."""
    path = write(tmp_path / "x.bin", {"w": tensor()})
    np.testing.assert_array_equal(read_torch_pickle(path)["w"], [[0, 1], [2, 3]])
    path = write(tmp_path / "x.bin", {"w": tensor(shape=(2,), strides=(2,), offset=1)})
    np.testing.assert_array_equal(read_torch_pickle(path)["w"], [1, 3])


def test_big_endian(tmp_path):
    raw = np.arange(4, dtype=">f4").tobytes()
    path = write(tmp_path / "x.bin", {"w": tensor()}, storages={"0": raw}, extra=[("archive/byteorder", "big")])
    np.testing.assert_array_equal(read_torch_pickle(path)["w"], [[0, 1], [2, 3]])


def test_tensor_v3_and_untyped_storage(tmp_path):
    storage = Storage(16, "UntypedStorage")
    arguments = (storage, 0, (2, 2), (2, 1), False, OrderedDict(), Global("torch", "float32"))
    path = write(tmp_path / "x.bin", {"w": Call("torch._utils", "_rebuild_tensor_v3", *arguments)})
    np.testing.assert_array_equal(read_torch_pickle(path)["w"], [[0, 1], [2, 3]])


EVIL = {
    "system": (Call("os", "system", "touch PWNED"), "asks for os.system"),
    "posix": (Call("posix", "system", "touch PWNED"), "asks for posix.system"),
    "eval": (Call("builtins", "eval", "1"), "asks for builtins.eval"),
    "getattr": (Call("builtins", "getattr", {}, "clear"), "asks for builtins.getattr"),
    "import": (Call("builtins", "__import__", "os"), "asks for builtins.__import__"),
    "numpy": (Call("numpy", "load", "x"), "asks for numpy.load"),
    "torch load": (Call("torch", "load", "x"), "asks for torch.load"),
    "torch hub": (Call("torch.hub", "load", "x"), "asks for torch.hub.load"),
    "dotted": (Call("collections", "OrderedDict.__class__", "x"), "asks for collections.OrderedDict.__class__"),
    "nested": ({"a": [{"b": Call("os", "system", "touch PWNED")}]}, "asks for os.system"),
    "as a key": ({"w": tensor(), "x": (Call("subprocess", "Popen", "ls"),)}, "asks for subprocess.Popen"),
    "calling a storage": (Call("torch", "FloatStorage", 4), "calls torch.FloatStorage"),
    "calling a dtype": (Call("torch", "float32", 4), "calls torch.float32"),
    "state of a list": (Call("torch", "Size", [1], state={"x": 1}), "sets the state of a tuple"),
    "encode": (Call("_codecs", "encode", "x", "rot13"), "_codecs.encode is called"),
    "storage kind": ({"w": tensor(Storage(4, "load"))}, "asks for torch.load"),
    "negative stride": ({"w": tensor(strides=(2, -1))}, "negative or broken"),
    "negative offset": ({"w": tensor(offset=-1)}, "negative or broken"),
    "beyond the storage": ({"w": tensor(offset=1)}, "reaches beyond its storage"),
    "huge stride": ({"w": tensor(strides=(2**62, 1))}, "reaches beyond its storage"),
    "expanded": ({"w": tensor(shape=(2**40, 1), strides=(0, 1))}, "an expanded tensor"),
    "sides and strides": ({"w": tensor(shape=(2, 2, 2))}, "3 sides and 2 strides"),
    "fractional side": ({"w": tensor(shape=(2.0, 2))}, "negative or broken"),
    "fractional offset": ({"w": tensor(offset=0.0)}, "negative or broken"),
    "oversized storage": ({"w": tensor(Storage(2**40))}, "has 16 bytes, not"),
    "no storage": ({"w": Call("torch._utils", "_rebuild_tensor_v2", [1], 0, (1,), (1,), False, {})}, "no storage"),
    "no tensor": ({"w": Call("torch._utils", "_rebuild_parameter", 3, False, {})}, "no tensor"),
    "size from a list of lists": (Call("torch", "Size", [[1]]), "negative or broken shape"),
    "too many sides": ({"w": tensor(shape=(1,) * 65)}, "more than 64 sides"),
    "OrderedDict of a dict": (Call("collections", "OrderedDict", {}), "no list of pairs"),
    "long text": (Call("_codecs", "encode", "x" * 5000, "latin1"), "_codecs.encode is called"),
    "a tuple as a key": ({("a", 1): tensor()}, "has a tuple as a key"),
    "a huge int as a key": ({2**61 - 1: tensor()}, "has 2305843009213693951 as a key"),
    "a list": ([tensor()], "holds a list, not a state dict"),
    "other things": ({"w": tensor(), "epoch": 3}, r"holds more than tensors by name \('epoch'\)"),
    "no names": ({1: tensor()}, "holds more than tensors"),
}


@pytest.mark.parametrize("name", EVIL)
def test_attacks_are_refused(tmp_path, name, monkeypatch, untyped):
    content, message = EVIL[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_torch_pickle(write(tmp_path / "x.bin", content))
    assert os.listdir(tmp_path) == ["x.bin"]


def _unicode(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


RAW = {
    "stack global": (
        b"\x80\x04" + _unicode("os") + _unicode("system") + b"\x93" + _unicode("ls") + b"\x85R.",
        "os.system",
    ),
    "extension": (b"\x80\x02\x82\x01.", "the instruction EXT1"),
    "inst": (b"(ios\nsystem\n.", "the instruction INST"),
    "obj": (b"\x80\x02(cos\nsystem\no.", "os.system"),
    "newobj": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "the instruction NEWOBJ"),
    "dup": (b"\x80\x02}2.", "the instruction DUP"),
    "persid by text": (b"P0\n.", "the instruction PERSID"),
    "fills a tuple": (b"\x80\x02)" + _unicode("a") + b"Ns.", "fills a tuple as if it were a dict"),
    "no stop": (b"\x80\x02}", "truncated or corrupt|corrupt"),
    "empty stack": (b"\x80\x02R.", "truncated or corrupt"),
    "unknown memo": (b"\x80\x02h\x05.", "truncated or corrupt"),
    "no mark": (b"\x80\x02}u.", "truncated or corrupt"),
    "garbage": (b"\xff\xfe garbage", "corrupt"),
    "protocol": (b"\x80\x09}.", "unknown protocol 9"),
    "other persistent id": (b"\x80\x02" + _unicode("file") + b"Q.", "which is no storage"),
}


def _doubling(times):
    """A tuple of itself twice, again and again: 2^times leaves in a few bytes."""
    return b")q\x00" + b"h\x00h\x00\x86q\x00" * times


FLOODS = {
    "doubling as a storage": b"\x80\x02" + _doubling(60) + b"Q.",
    "doubling as a key": b"\x80\x02}" + _doubling(60) + b"Ns.",
    "doubling as a name": b"\x80\x04" + _doubling(60) + _unicode("x") + b"\x93.",
    "doubling as a call": b"\x80\x02" + _doubling(60) + b")R.",
    "doubling as a dtype": b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n(NNNNNN" + _doubling(60) + b"tR.",
    "deep as a key": b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns.",
    "deep as the result": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "endless": b"\x80\x02" + b"]" * 3_000_000 + b".",
    "a list within itself": b"\x80\x02]q\x00h\x00a.",
}


@pytest.mark.slow
def test_floods_are_refused_at_once(tmp_path):
    """In a process of its own, with little memory and time: what goes wrong here goes wrong badly."""
    paths = [str(write(tmp_path / f"{name}.bin", data=data)) for name, data in FLOODS.items()]
    program = f"""
import resource
import ddpm_jax.checkpoint.torch_pickle as reader
resource.setrlimit(resource.RLIMIT_AS, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + 6 * 2**30,) * 2)
for path in {paths!r}:
    try:
        reader.read_torch_pickle(path)
        print("READ", path)
    except ValueError as error:
        print("refused", str(error)[-200:], flush=True)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and len(lines) == len(FLOODS), (lines, result.stderr[-2000:])
    assert all(line.startswith("refused") for line in lines), lines


def test_nested_dicts(tmp_path):
    """What trainers save: the tensors come out under dotted names, and the rest is left out."""
    storages = {str(i): np.full(4, i, np.float32).tobytes() for i in range(3)}
    model, average, moment = ({"w": tensor(Storage(key=str(i)))} for i in range(3))
    content = {"model": model, "ema": average, "optimizer": {"state": {0: moment}, "param_groups": [{"lr": 1e-3}]}}
    path = write(tmp_path / "x.ckpt", content | {"step": 5, "note": "x", "same": model}, storages=storages)
    tensors = read_torch_pickle(path)
    assert tensors.keys() == {"model.w", "ema.w", "optimizer.state.0.w"}
    for i, name in enumerate(("model.w", "ema.w", "optimizer.state.0.w")):
        np.testing.assert_array_equal(tensors[name], np.full((2, 2), i))


DEEP = {"w": tensor()}
for _ in range(9):
    DEEP = {"x": DEEP}
NESTED = {
    "without tensors": ({"model": {"step": 3}}, "holds no tensor"),
    "two of a name": ({"a": {"w": tensor()}, "a.w": tensor()}, "holds 'a.w' twice"),
    "too deep": (DEEP, "nested more than 8 deep"),
    "long names": ({"x" * 300: {"w": tensor()}}, "under long names"),
}


@pytest.mark.parametrize("name", NESTED)
def test_odd_nested_dicts(tmp_path, name):
    content, message = NESTED[name]
    with pytest.raises(ValueError, match=message):
        read_torch_pickle(write(tmp_path / "x.bin", content))


@pytest.mark.parametrize("module, name", [("torch.nn.modules.container", "Sequential"), ("__main__", "Net")])
@pytest.mark.parametrize("nested", [False, True])
def test_whole_networks_are_named_for_what_they_are(tmp_path, module, name, nested):
    net = Call(module, name, {"_forward_pre_hooks": None})
    path = write(tmp_path / "x.bin", {"model": net, "epoch": 3} if nested else net)
    with pytest.raises(ValueError, match=rf"a whole network of torch \({module}.{name}\).*state_dict") as error:
        read_torch_pickle(path)
    assert "attack" not in str(error.value)


@pytest.mark.parametrize("name", ["torch.optim.adam.Adam", "argparse.Namespace", "numpy.core.multiarray.scalar"])
def test_what_trainers_add_is_no_attack(tmp_path, name):
    module, _, kind = name.rpartition(".")
    with pytest.raises(ValueError, match=f"asks for {name}, .*saves the tensors alone") as error:
        read_torch_pickle(write(tmp_path / "x.bin", {"state_dict": {"w": tensor()}, "more": Call(module, kind)}))
    assert "attack" not in str(error.value)
    with pytest.raises(ValueError, match="asks for os.system, .*may be an attack"):
        read_torch_pickle(write(tmp_path / "x.bin", Call("os", "system", "ls")))


def test_copies_of_the_same_bytes(tmp_path):
    """Small files must not become large arrays, but a few tied weights are usual."""
    content = {f"w{i}": tensor(Storage(4096), shape=(64, 64), strides=(1, 64)) for i in range(200)}
    storages = {"0": np.arange(4096, dtype=np.float32).tobytes()}
    with pytest.raises(ValueError, match="copies of the same bytes"):
        read_torch_pickle(write(tmp_path / "x.bin", content, storages=storages))
    few = {name: content[name] for name in ("w0", "w1")}
    assert len(read_torch_pickle(write(tmp_path / "x.bin", few, storages=storages))) == 2


def test_overlapping_entries(tmp_path):
    """Entries of a zip that point at the same bytes, as a bomb does."""
    path = write(tmp_path / "x.bin", {"w": tensor()}, storages={str(i): b"\0" * 4096 for i in range(20)})
    raw = bytearray(path.read_bytes())
    first = zipfile.ZipFile(path).getinfo("archive/data/0").header_offset
    place = raw.index(b"PK\x01\x02")
    while raw[place : place + 4] == b"PK\x01\x02":  # the central directory: every entry at the same place, and large
        raw[place + 20 : place + 28] = struct.pack("<II", 4096 * 8, 4096 * 8)
        raw[place + 42 : place + 46] = struct.pack("<I", first)
        name, extra, comment = struct.unpack("<HHH", raw[place + 28 : place + 34])
        place += 46 + name + extra + comment
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="larger than the file itself"):
        read_torch_pickle(path)


@pytest.mark.parametrize("name", RAW)
def test_foreign_instructions_are_refused(tmp_path, name):
    data, message = RAW[name]
    with pytest.raises(ValueError, match=message):
        read_torch_pickle(write(tmp_path / "x.bin", data=data))


def test_attacks_in_the_legacy_format(tmp_path):
    whole = (ORACLES / "pickle_legacy.bin").read_bytes()
    evil = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."
    start = whole.index(b"\x80\x02", 10)
    (tmp_path / "x.bin").write_bytes(whole[:start] + evil)
    with pytest.raises(ValueError, match="os.system"):
        read_torch_pickle(tmp_path / "x.bin")


def test_odd_archives_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    with pytest.raises(ValueError, match="compresses archive/data.pkl"):
        read_torch_pickle(write(path, {}, compress=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="TorchScript"):
        read_torch_pickle(write(path, {}, extra=[("archive/constants.pkl", "")]))
    with pytest.raises(ValueError, match="no single root folder"):
        read_torch_pickle(write(path, {}, extra=[("other/x", "")]))
    with pytest.warns(UserWarning, match="Duplicate"):
        write(path, {}, extra=[("archive/version", "4")])
    with pytest.raises(ValueError, match="holds archive/version twice"):
        read_torch_pickle(path)
    with pytest.raises(ValueError, match="truncated or corrupt"):  # its storage is not in the archive
        read_torch_pickle(write(path, {"w": tensor()}, storages={}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/x", "")
    with pytest.raises(ValueError, match="no data.pkl"):
        read_torch_pickle(path)


@pytest.mark.parametrize("name", ["pickle_zip.bin", "pickle_legacy.bin"])
def test_truncated_files(tmp_path, name):
    whole = (ORACLES / name).read_bytes()
    for keep in (0, 3, 20, len(whole) // 2, len(whole) - 40):
        (tmp_path / "x.bin").write_bytes(whole[:keep])
        with pytest.raises(ValueError, match="x.bin is (truncated|corrupt|refused)"):
            read_torch_pickle(tmp_path / "x.bin")


def test_a_flipped_bit_is_noticed(tmp_path):
    """The zip's checksums cover every storage."""
    whole = bytearray((ORACLES / "pickle_zip.bin").read_bytes())
    with zipfile.ZipFile(ORACLES / "pickle_zip.bin") as archive:
        place = next(entry for entry in archive.infolist() if entry.filename.endswith("data/0")).header_offset
    whole[place + 150] ^= 1
    (tmp_path / "x.bin").write_bytes(whole)
    with pytest.raises(ValueError, match="x.bin"):
        read_torch_pickle(tmp_path / "x.bin")
