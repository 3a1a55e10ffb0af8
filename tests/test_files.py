"""Folders on disk: whose they are, what a kill leaves, and names that libraries take for patterns."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import small_params
from etils import epath

import ddpm_jax
from ddpm_jax.files import (
    LOCK,
    check_local,
    locked,
    new_folder,
    read_json,
    stored,
    versions,
    whole_file,
    write_json,
)

ODD = (
    "flowers [v2]",
    "a*b",
    "what?",
    "[x]/run",
    "[!a]/**",
    "a b",
    "ü 日本",
    "50%41",
    "a{b,c}",
    "a\\b",
    "gs:/x",
    "~x",
    "a#b",
)


@pytest.mark.parametrize("name", ODD)
def test_a_checkpoint_in_a_folder_of_any_name(name, tmp_path):
    """Written there, or moved there; beside it lies a folder that its name as a pattern would mean."""
    params = small_params()
    ddpm_jax.save(params, tmp_path / "axb")
    ddpm_jax.save(params, tmp_path / name)
    (tmp_path / "moved" / name).parent.mkdir(parents=True)
    shutil.move(tmp_path / "axb", tmp_path / "moved" / name)
    for folder in (tmp_path / name, tmp_path / "moved" / name):
        jax.tree.map(np.testing.assert_array_equal, ddpm_jax.load(folder).weights, params.weights)


def test_what_cannot_be_read_back_is_no_checkpoint(tmp_path, monkeypatch):
    """The files of orbax's processes are not found, and it says nothing: nothing is left under the name."""
    monkeypatch.setattr(epath.backend._OsPathBackend, "glob", lambda self, path: [])
    with pytest.raises(OSError, match="cannot be read back: .* Try another disk or folder"):
        ddpm_jax.save(small_params(), tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "https://host/x", "file:///home/x", "hf://a/b"])
def test_a_url_is_no_folder(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (url, Path(url)):
        with pytest.raises(ValueError, match="is no local path: mount it, or copy it"):
            check_local(given)
        with pytest.raises(ValueError, match="is no local path"):
            ddpm_jax.save(small_params(), given)
    assert os.listdir(tmp_path) == []
    for path in ("C:/models", "a:b/c", "runs/gs:/x", "2024:/x"):
        check_local(path)


def test_a_folder_is_held_by_one_job(tmp_path):
    with locked(tmp_path / "a/run", "run"):
        mine = rf"The run .* is in use by another job \(process {os.getpid()} on {socket.gethostname()}\): wait"
        with pytest.raises(BlockingIOError, match=mine):
            with locked(tmp_path / "a/run", "run"):
                pass
        (tmp_path / "a/run/train.json").write_text("{}")
    assert os.listdir(tmp_path / "a/run") == ["train.json"]
    with locked(tmp_path / "a/run", "run"), locked(tmp_path / "b/c", "run"):
        pass
    assert not (tmp_path / "b").exists()  # left empty, it goes with the parents that were made for it
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        with locked(tmp_path / "file", "run"):
            pass


def test_a_killed_job_holds_nothing(tmp_path):
    program = f"""
import os, pathlib
from ddpm_jax.files import locked
with locked(pathlib.Path({str(tmp_path)!r}), "run"):
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path, "run"):
        pass


def test_the_lock_of_another_machine(tmp_path, caplog):
    """Its system has let go, if the file system tells: go on, and say whose it was."""
    (tmp_path / LOCK).write_text("17 on elsewhere\n")
    with caplog.at_level(logging.WARNING), locked(tmp_path, "run"):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()} on {socket.gethostname()}\n"
    assert "was left by process 17 on elsewhere. If that still runs, stop one of the two" in caplog.text


def test_a_lock_that_goes_in_between(tmp_path, monkeypatch):
    """The job before removes its file after we have opened it: what we hold then has no name, and is no lock."""
    import fcntl

    lock, waiting = fcntl.flock, [tmp_path / LOCK]

    def flock(file, flags):
        if waiting:
            waiting.pop().unlink()
        return lock(file, flags)

    monkeypatch.setattr("fcntl.flock", flock)
    with locked(tmp_path, "run"):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()} on {socket.gethostname()}\n"
    assert not waiting


def test_a_file_system_without_locks(tmp_path, caplog, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with caplog.at_level(logging.WARNING), locked(tmp_path, "run"):
        pass
    assert "cannot be locked" in caplog.text and "do not start a second job in it" in caplog.text


def test_what_a_killed_writer_left_goes(tmp_path):
    """Of a process that is dead, and of this machine; what it had moved aside comes back."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, alive = socket.gethostname(), os.getppid()
    gone, stay = f".x.partial-{host}-{dead.pid}", [f".x.partial-{host}-{alive}", f".x.partial-else-{dead.pid}"]
    for name in (gone, *stay, f".x.replaced-{host}-{dead.pid}", f".xy.partial-{host}-{dead.pid}"):
        (tmp_path / name).mkdir()
    (tmp_path / f".x.replaced-{host}-{dead.pid}" / "mark").write_text("old")
    with pytest.raises(FileExistsError, match="exists already"):  # the old one is there again
        with new_folder(tmp_path / "x", overwrite=False, marks=("mark",)):
            pass
    assert sorted(os.listdir(tmp_path)) == sorted([*stay, f".xy.partial-{host}-{dead.pid}", "x"])
    assert (tmp_path / "x/mark").read_text() == "old"


def test_what_this_process_left_comes_back(tmp_path):
    """An exception between the two renames, long ago in this very process."""
    aside = tmp_path / f".x.replaced-{socket.gethostname()}-{os.getpid()}"
    aside.mkdir()
    (aside / "mark").write_text("old")
    with pytest.raises(FileExistsError, match="exists already"):
        with new_folder(tmp_path / "x", overwrite=False, marks=("mark",)):
            pass
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x/mark").read_text() == "old"


def test_json_files(tmp_path):
    write_json(tmp_path / "new/x.json", {"b": 1, "a": [1, None]})
    assert (tmp_path / "new/x.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ],\n  "b": 1\n}\n'
    assert read_json(tmp_path / "new/x.json") == {"a": [1, None], "b": 1}
    for content, message in ((b"[1]", "must hold a JSON object, not a list"), (b"{", "no JSON"), (b"\xff", "no JSON")):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"bad.json .*{message}"):
            read_json(tmp_path / "bad.json")


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    before = os.stat(path).st_ino
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.stat(path).st_ino == before
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["x"]


class TestNewFolder:
    MARKS = ("mark",)

    @pytest.fixture
    def old(self, tmp_path):
        (tmp_path / "x").mkdir()
        (tmp_path / "x/mark").write_text("old")
        return tmp_path / "x"

    def test_is_there_when_all_is_written(self, tmp_path):
        with new_folder(tmp_path / "a/x", overwrite=False, marks=self.MARKS) as partial:
            (partial / "mark").write_text("new")
            assert not (tmp_path / "a/x").exists()
        assert os.listdir(tmp_path / "a") == ["x"] and os.listdir(tmp_path / "a/x") == ["mark"]

    def test_an_exception_leaves_the_old_one(self, old):
        with pytest.raises(RuntimeError), new_folder(old, overwrite=True, marks=self.MARKS) as partial:
            (partial / "mark").write_text("half")
            raise RuntimeError
        assert os.listdir(old.parent) == ["x"] and (old / "mark").read_text() == "old"

    def test_replaces_what_has_a_mark(self, old):
        with new_folder(old, overwrite=True, marks=self.MARKS) as partial:
            (partial / "other").write_text("new")
        assert os.listdir(old.parent) == ["x"] and os.listdir(old) == ["other"]
        with pytest.raises(FileExistsError, match="may not be overwritten: it is not empty and has no mark"):
            with new_folder(old, overwrite=True, marks=self.MARKS):
                pass
        assert os.listdir(old) == ["other"]

    def test_what_came_in_the_meantime_stays(self, tmp_path):
        with pytest.raises(FileExistsError, match="exists already"):
            with new_folder(tmp_path / "x", overwrite=False, marks=self.MARKS):
                (tmp_path / "x").mkdir()
                (tmp_path / "x/theirs").write_text("")
        assert os.listdir(tmp_path) == ["x"] and os.listdir(tmp_path / "x") == ["theirs"]

    def test_the_old_one_comes_back_when_renaming_fails(self, old, monkeypatch):
        rename = Path.rename

        def fails(self, target):
            if ".partial-" in self.name:
                raise OSError("no rename")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", fails)
        with pytest.raises(OSError, match="no rename"):
            with new_folder(old, overwrite=True, marks=self.MARKS):
                pass
        assert os.listdir(old.parent) == ["x"] and (old / "mark").read_text() == "old"

    def test_a_file_is_in_the_way(self, tmp_path):
        (tmp_path / "x").write_text("")
        for folder in (tmp_path / "x/y", tmp_path / "x/y/z"):
            with pytest.raises(NotADirectoryError, match="is a file, so the folder .* cannot be made. Choose another"):
                with new_folder(folder, overwrite=False, marks=self.MARKS):
                    pass
        with pytest.raises(NotADirectoryError, match="is a file, but a folder is to be written"):
            with new_folder(tmp_path / "x", overwrite=True, marks=self.MARKS):
                pass

    @pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write everywhere")
    def test_a_place_that_cannot_be_written(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match="is not writable. Choose another place"):
            with new_folder(tmp_path / "a/x", overwrite=False, marks=self.MARKS):
                pass


def test_what_is_stored(untyped):
    values = {"a": np.array([1.0, 1e5, np.inf], np.float32)}
    assert stored(values, "bfloat16")["a"].dtype.name == "bfloat16"
    assert stored(values, "float32")["a"].tolist() == [1.0, 1e5, np.inf]
    with pytest.raises(ValueError, match="a holds values beyond the range of float16: store it as bfloat16 or float32"):
        stored(values, "float16")
    with pytest.raises(ValueError, match="`storage_dtype` must be one of"):
        stored(values, "int8")


def test_versions():
    assert versions("numpy") == {"numpy": np.__version__}
    assert versions("jax", "numpy") == {"jax": jax.__version__, "numpy": np.__version__}
