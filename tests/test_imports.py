"""Who may import whom, what importing costs, and that every public name is documented."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import ddpm_jax

PACKAGE = Path(ddpm_jax.__file__).parent

# A module imports only from ranks below its own, or from its own family.
RANKS = [
    {"types", "validation", "extras"},
    {"files", "progress", "random_keys"},
    {"kept_programs", "config"},
    {"schedule", "pixels", "models", "sharding", "compilation"},
    {"plotting", "reverse"},
    {"params", "samplers"},
    {"sampling", "losses", "checkpoint"},
    {"images"},
    {"artefact", "training"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# Heavy packages have one door each; torch and diffusers have none.
DOORS = {
    "orbax": {"checkpoint/folder.py", "training/checkpoints.py"},
    "grain": {"training/data.py"},
    "optax": {"training/step.py"},
    "tensorboardX": {"training/logs.py"},
    "safetensors": {"checkpoint/families/diffusers.py"},
    "huggingface_hub": {"checkpoint/hub.py"},
    "jaxtyping": {"types.py"},
    "tyro": {"cli/__init__.py", "cli/arguments.py", "cli/sampling.py", "cli/checkpoints.py", "cli/compile.py"},
    "tqdm": {"progress.py"},
    "scipy": {"samplers/grids.py"},
    "matplotlib": {"plotting.py"},
    "torch": set(),
    "diffusers": set(),
}
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name not in ("__main__.py",) and path.parent != PACKAGE / "demo"
)


def imports(path):
    """Every (module, is at the top of the file) that a file imports."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in top
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


def test_every_room_has_a_rank():
    rooms = {path.relative_to(PACKAGE).as_posix().split("/")[0].removesuffix(".py") for path in FILES}
    assert rooms - {"__init__"} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_layers(path):
    name = path.relative_to(PACKAGE).as_posix()
    if name == "__init__.py":
        return
    family = name.split("/")[0].removesuffix(".py")
    for module, _ in imports(path):
        if module.startswith("ddpm_jax."):
            other = module.split(".")[1]
            assert other in RANK, f"{name} imports {module}, whose rank is not listed"
            if other != family:
                assert RANK[other] < RANK[family], f"{name} imports {module}, which is not below it"
        for package, doors in DOORS.items():
            if module.split(".")[0] == package:
                assert name in doors, f"{name} imports {package}; only {doors or 'nobody'} may"


def test_importing_is_light():
    """No heavy package is loaded by `import ddpm_jax`, nor by opening the demo."""
    heavy = ("orbax.checkpoint", "grain", "optax", "matplotlib", "torch", "diffusers", "tyro", "scipy.special")
    program = f"import sys, ddpm_jax; ddpm_jax.load(); print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_our_folder_needs_neither_safetensors_nor_torch(tmp_path):
    ddpm_jax.save(ddpm_jax.load("digits-16"), tmp_path / "x")
    program = f"""
import sys
sys.modules["safetensors"] = sys.modules["torch"] = None
import ddpm_jax
print(ddpm_jax.load({str(tmp_path / "x")!r}).config.unet.sample_size)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "16", result.stderr


def test_files_stay_small_and_named_for_what_they_hold():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 500, path
        assert path.stem not in ("utils", "helpers", "common", "misc")


@pytest.mark.parametrize("name", [name for name in ddpm_jax.__all__ if callable(getattr(ddpm_jax, name))])
def test_public_names_are_documented(name):
    item = getattr(ddpm_jax, name)
    text = inspect.getdoc(item)
    assert text and text.splitlines()[0].endswith((".", ":"))
    if name not in ("Trajectory", "Prediction"):  # plain bundles, made by functions that show them
        assert "Example:" in text, name


def test_no_module_bears_the_name_of_a_public_function():
    stems = {path.stem for path in FILES}
    functions = {name for name in ddpm_jax.__all__ if inspect.isfunction(getattr(ddpm_jax, name))}
    assert not stems & functions
