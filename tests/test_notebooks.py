"""The notebooks run. Their first cell installs ddpm_jax where it is missing: from the clone around it, or by name."""

import importlib.metadata
import json
import shutil
import subprocess

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXTRAS = {"01_sample": "plot", "03_evaluate": "plot,train"}  # the digits are scikit-learn's
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def first_code(path):
    return next(
        "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"
    )


@pytest.fixture
def commands(monkeypatch):
    """What the cell runs, where ddpm_jax is not installed."""
    commands = []

    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command[3:]))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return commands


@each_notebook
class TestInstallation:
    def test_from_the_clone(self, path, commands, monkeypatch):
        for folder in (path.parent, ROOT):  # where Jupyter starts a kernel, and where an editor may
            monkeypatch.chdir(folder)
            exec(first_code(path), {})
        assert commands == [["install", "-q", f"{ROOT}[{EXTRAS[path.stem]}]"]] * 2

    def test_from_a_clone_beside(self, path, commands, monkeypatch, tmp_path):
        """Colab's kernel starts in /content, and `git clone` there makes a folder of it."""
        (tmp_path / "clone/ddpm_jax").mkdir(parents=True)
        (tmp_path / "clone/pyproject.toml").touch()
        (tmp_path / "sample_data").mkdir()
        monkeypatch.chdir(tmp_path)
        exec(first_code(path), {})
        assert commands == [["install", "-q", f"{tmp_path / 'clone'}[{EXTRAS[path.stem]}]"]]

    def test_by_name(self, path, commands, monkeypatch, tmp_path):
        """Also where a project of somebody else lies around."""
        (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"')
        monkeypatch.chdir(tmp_path)
        exec(first_code(path), {})
        assert commands == [["install", "-q", f"ddpm-jax[{EXTRAS[path.stem]}]"]]

    def test_with_the_jax_of_the_accelerator(self, path, commands, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if name == "nvidia-smi" else None)
        exec(first_code(path), {})
        assert commands == [["install", "-q", f"ddpm-jax[cuda,{EXTRAS[path.stem]}]"]]

    def test_not_where_it_is_installed(self, path, commands, monkeypatch, tmp_path):
        monkeypatch.undo()
        monkeypatch.setattr(subprocess, "run", lambda *command, **options: pytest.fail(f"ran {command}"))
        exec(first_code(path), {})


@pytest.mark.slow
@each_notebook
def test_notebook(path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 5
