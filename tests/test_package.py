"""What the package says of itself: its version, its types, and what `import ddpm_jax` brings."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import ddpm_jax


def test_training_and_evaluation_are_imported_on_first_use():
    """`import ddpm_jax` lists them and does not load them; `ddpm_jax.training` does. Evaluation trains nothing."""
    program = """
import sys, ddpm_jax
heavy = ("ddpm_jax.training", "optax", "grain", "orbax.checkpoint", "ddpm_jax.evaluation")
print({"training", "evaluation"} <= {*dir(ddpm_jax)}, [name for name in heavy if name in sys.modules])
print(ddpm_jax.evaluation.fid.__name__, [name for name in heavy if name in sys.modules])
print(ddpm_jax.training.train.__name__, [name for name in heavy[:2] if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "True []",
        "fid ['ddpm_jax.evaluation']",
        "train ['ddpm_jax.training', 'optax']",
    ], result.stderr


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'ddpm_jax' has no attribute 'trainin'"):
        ddpm_jax.trainin  # noqa: B018
    assert not hasattr(ddpm_jax, "evaluation_of_nothing")


def test_the_version_stands_in_one_place():
    """pyproject.toml reads it from the package, and the changelog's newest release is that version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "ddpm_jax/__init__.py"
    headings = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0] == "## Unreleased"
    assert headings[1].startswith(f"## {ddpm_jax.__version__} - ")


def test_annotations_are_for_type_checkers_of_users():
    assert (Path(ddpm_jax.__file__).parent / "py.typed").is_file()


@pytest.mark.slow
class TestDistributions:
    def run(self, folder, *command):
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, (result.stdout + result.stderr)[-2000:]
        return result.stdout

    def test_wheel_installs_and_samples_outside_the_checkout(self, tmp_path):
        """Built, put into a folder of its own (with this environment's dependencies) and run from there."""
        self.run(tmp_path, sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT))
        (wheel,) = tmp_path.glob("*.whl")
        assert wheel.name.startswith(f"ddpm_jax-{ddpm_jax.__version__}-")
        names = zipfile.ZipFile(wheel).namelist()
        for name in ("digits-16", "produce-32"):
            assert f"ddpm_jax/demo/{name}/unet/diffusion_pytorch_model.safetensors" in names
        assert "ddpm_jax/py.typed" in names
        assert all(name.startswith(("ddpm_jax/", "ddpm_jax-")) for name in names)
        site = tmp_path / "site"
        self.run(tmp_path, sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel))
        program = (
            f"import sys; sys.path.insert(0, {str(site)!r})\n"
            "import ddpm_jax; from ddpm_jax.cli import main; print(ddpm_jax.__file__)\n"
            "main(['sample', '--batch-size', '2', '--sampler', 'ddim', '--steps', '5'])"
        )
        assert str(site) in self.run(tmp_path, sys.executable, "-c", program)
        assert (tmp_path / "samples/grid.png").is_file()

    @pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git does not know these files: this is no clone")
    def test_sdist_holds_all_that_the_tests_need(self, tmp_path):
        """Every file that git knows, but for what says how git and its hosts treat the rest."""
        self.run(tmp_path, sys.executable, "-m", "build", "--sdist", "--outdir", str(tmp_path), str(ROOT))
        (sdist,) = tmp_path.glob("*.tar.gz")
        names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
        tracked = set(self.run(ROOT, "git", "ls-files").split("\n")) - {""}
        assert tracked - names == set()
        assert {name for name in names - tracked if not name.startswith("PKG-INFO")} == set()
