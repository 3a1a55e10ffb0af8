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
    {"sampling", "losses", "likelihood", "checkpoint"},
    {"images"},
    {"artefact", "compression", "evaluation", "training"},
    {"cli"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
# Heavy packages have one door each; torch and diffusers have none.
DOORS = {
    "orbax": {"checkpoint/trees.py"},
    "grain": {"training/data.py"},
    "optax": {"training/step.py"},
    "tensorboardX": {"training/logs.py"},
    "safetensors": {"checkpoint/families/diffusers.py"},
    "huggingface_hub": {"checkpoint/hub.py"},
    "jaxtyping": {"types.py"},
    "tyro": {
        "cli/__init__.py",
        "cli/arguments.py",
        "cli/sampling.py",
        "cli/checkpoints.py",
        "cli/compile.py",
        "cli/evaluation.py",
        "cli/statistics.py",
        "cli/figures.py",
    },
    "tqdm": {"progress.py"},
    "scipy": {"samplers/grids.py"},
    "matplotlib": {"plotting.py"},
    "diffrax": {"likelihood/flow.py"},
    "torch": set(),
    "torchvision": set(),
    "torch_fidelity": set(),
    "pytorch_fid": set(),
    "cleanfid": set(),
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


@pytest.mark.parametrize("name", ["moments", "pairs", "metrics", "intervals"])
def test_metrics_are_numpy_alone(name):
    """Of arrays: no network, no files, no JAX."""
    own = {f"ddpm_jax.evaluation.{other}" for other in ("moments", "pairs", "metrics", "intervals")}
    for module, _ in imports(PACKAGE / f"evaluation/{name}.py"):
        if module.startswith("ddpm_jax."):
            assert module == "ddpm_jax.evaluation" or module.startswith((*own, "ddpm_jax.validation")), module
        else:
            assert module.split(".")[0] in {"numpy", *sys.stdlib_module_names}, module


def names_of(path):
    """A module's dotted name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(("ddpm_jax", *(part for part in parts if part != "__init__")))


def test_no_module_imports_itself_by_way_of_others():
    """Also within a family, where ranks say nothing, and by imports inside functions."""
    modules = {names_of(path): path for path in FILES if path != PACKAGE / "__init__.py"}
    below = {name: {other for other, _ in imports(path) if other in modules} for name, path in modules.items()}
    # `from package import module` imports the module; the package is meant only where a name of its own is taken
    for name, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                if all(f"{node.module}.{alias.name}" in modules for alias in node.names):
                    below[name].discard(node.module)
    waiting = dict(below)
    while leaves := [name for name, others in waiting.items() if not others & waiting.keys()]:
        for name in leaves:
            del waiting[name]
    assert not waiting, f"these import one another: {waiting}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_private_names_stay_in_their_module(path):
    tree = ast.parse(path.read_text())
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ddpm_jax":
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private or private == ["__version__"], f"{private} of {node.module}"
            modules |= {alias.asname or alias.name for alias in node.names if alias.name[0].islower()}
    taken = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
        if node.attr.startswith("_") and not node.attr.startswith("__")
    ]
    assert not taken


def documented(tree):
    """Every function and class of a module that can be reached from outside it: (name, is a property, docstring)."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, False, ast.get_docstring(node)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("__"):
                    decorators = {getattr(decorator, "id", "") for decorator in inner.decorator_list}
                    yield f"{node.name}.{inner.name}", "property" in decorators, ast.get_docstring(inner)


NO_VERBS = set("a an all every how its the this those what when where whether which".split())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_first_line_of_a_docstring_is_a_sentence(path):
    """One line and a full stop, then a blank line; of a public function an order: "Return ...", not "Returns ..."."""
    tree = ast.parse(path.read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    texts = [("the module", False, ast.get_docstring(tree)), *documented(tree)]
    for name, is_property, text in texts:
        public = not name.rpartition(".")[2].startswith("_")
        if text is None:
            assert name not in functions or not public, f"{name} has no docstring"
            continue
        first, *rest = text.splitlines()
        assert first.endswith("."), f"{name}: {first}"
        assert not rest or not rest[0], f"{name}: a blank line comes after {first}"
        if name in functions and public and not is_property:
            word = first.split()[0]
            assert word.lower() not in NO_VERBS and not word.endswith(("ing", "s,")), f"{name}: {first}"
            assert not word.endswith("s") or word in ("Express", "Process", "Compress"), f"{name}: {first}"


def test_importing_is_light():
    """No heavy package is loaded by `import ddpm_jax`, nor by opening the demo, nor by evaluation's public names."""
    heavy = (
        "orbax.checkpoint",
        "grain",
        "optax",
        "diffrax",
        "matplotlib",
        "torch",
        "diffusers",
        "tyro",
        "scipy.special",
    )
    work = "import sys, ddpm_jax; ddpm_jax.load(); ddpm_jax.evaluation"
    program = f"{work}; print([name for name in {heavy} if name in sys.modules])"
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
    assert text and text.splitlines()[0].endswith(".")
    if name not in ("Trajectory", "Prediction"):  # plain bundles, made by functions that show them
        assert "Example:" in text, name


def test_no_module_bears_the_name_of_a_public_function():
    stems = {path.stem for path in FILES}
    functions = {name for name in ddpm_jax.__all__ if inspect.isfunction(getattr(ddpm_jax, name))}
    assert not stems & functions
