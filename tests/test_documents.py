"""The README's code and the notebooks run, and what they promise is so."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme_python(number, tmp_path, monkeypatch):
    """Every block runs by itself; where it names a checkpoint of the hub, the digits stand for it."""
    monkeypatch.chdir(tmp_path)
    block = re.sub(r'"google/[\w-]+"', '"digits-16"', BLOCKS[number])
    exec(compile(block, f"README.md, block {number}", "exec"), {"__name__": "readme"})


def test_readme_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / (picture[0] or picture[1])).is_file(), picture


def test_readme_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci/run").read_text()
    for command in ("pip install .", 'pip install ".[test]"', "python -m pytest", "ddpm-jax sample --fast"):
        assert command in README
        assert command.replace("pip install", "pip install --quiet") in ci


def test_command_line_options_in_the_readme_exist():
    from ddpm_jax import cli

    package = Path(cli.__file__).parent.parent
    files = [*(package / "cli").glob("*.py"), package / "training/settings.py", package / "losses.py"]
    text = " ".join(path.read_text() for path in files)
    for command in re.findall(r"^ddpm-jax .*$", README, re.MULTILINE):
        for option in re.findall(r"--([a-z-]+)", command):
            assert re.search(rf"^ +{option.replace('-', '_')}: ", text, re.MULTILINE), (command, option)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebook(path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 5


@pytest.mark.slow
def test_wheel_installs_and_samples_outside_the_checkout(tmp_path):
    """Built, put into a folder of its own (with this environment's dependencies) and run from there."""
    run = lambda *command: subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    result = run(sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT))
    assert result.returncode == 0, result.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("digits-16", "produce-32"):
        assert f"ddpm_jax/demo/{name}/unet/diffusion_pytorch_model.safetensors" in names
    assert all(name.startswith(("ddpm_jax/", "ddpm_jax-")) for name in names)
    result = run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    assert result.returncode == 0, result.stderr[-2000:]
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import ddpm_jax; from ddpm_jax.cli import main; print(ddpm_jax.__file__)\n"
        "main(['sample', '--batch-size', '2', '--sampler', 'ddim', '--steps', '5'])"
    )
    result = run(sys.executable, "-c", program)
    assert result.returncode == 0, result.stderr[-2000:]
    assert str(tmp_path / "site") in result.stdout and (tmp_path / "samples/grid.png").is_file()
