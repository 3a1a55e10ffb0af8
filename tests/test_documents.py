"""README and docs: their code runs and makes the pictures that they show; what they name exists."""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import os
import re
import types
from collections.abc import Iterator
from typing import get_args
from unittest import mock

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import ddpm_jax
from ddpm_jax import evaluation, samplers, training
from ddpm_jax.cli import figures, main
from ddpm_jax.evaluation import features, metrics

DOCS = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
EVALUATION = ROOT / "docs/evaluation.md"
PICTURES = ROOT / "docs/images"
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


class TestCode:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "path",
        [path for path in DOCUMENTS if blocks(path, "python")],
        ids=lambda path: path.relative_to(ROOT).as_posix(),
    )
    def test_python(self, path, tmp_path, monkeypatch):
        """The blocks of a page run in their order; where they name a checkpoint of the hub, the digits stand for it."""
        monkeypatch.chdir(tmp_path)
        code = re.sub(r'"google/[\w-]+"', '"digits-16"', "\n".join(blocks(path, "python")))
        exec(compile(code, path.name, "exec"), {"__name__": path.stem})
        for name in re.findall(r'"([\w-]+\.(?:png|gif))"', code):
            made, shown = Image.open(tmp_path / name), PICTURES / name
            if shown.is_file():
                made, shown = (np.asarray(image, np.float32) for image in (made, Image.open(shown)))
                # pixels near the middle of two greys round either way on another processor; other images are 50 away
                assert made.shape == shown.shape and np.abs(made - shown).mean() < 1, name

    def test_there_is_code_to_run(self):
        with_code = {path.stem for path in DOCUMENTS if blocks(path, "python")}
        assert with_code >= {
            "README",
            "index",
            "sampling",
            "samplers",
            "training",
            "evaluation",
            "checkpoints",
            "extending",
        }


class TestPictures:
    @each_document
    def test_exist(self, path):
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text()):
            assert (path.parent / picture).is_file(), picture

    def test_all_are_shown(self):
        text = "".join(path.read_text() for path in DOCUMENTS)
        assert all(f"images/{picture.name}" in text for picture in PICTURES.iterdir())
        assert "](docs/images/" in (ROOT / "README.md").read_text()


class TestLinks:
    @each_document
    def test_exist(self, path):
        """Links to files, and to headings of them."""
        for target, _, heading in re.findall(r"(?<!!)\[[^\]]+\]\(([\w./-]*)(#([\w-]+))?\)", path.read_text()):
            file = path.parent / target if target else path
            assert file.exists(), target
            if heading:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
                assert heading in anchors, (target, heading)

    @each_document
    def test_files_that_are_named_exist(self, path):
        for name in re.findall(
            r"`((?:ddpm_jax|tests|docs|benchmarks|convert|notebooks|\.ci)/[\w./-]*)`", path.read_text()
        ):
            assert (ROOT / name).exists(), name


def test_readme_commands_are_those_that_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    for command in ("pip install .", 'pip install ".[test]"', "python -m pytest", "ddpm-jax sample --fast"):
        assert command in readme
        assert command.replace("pip install", "pip install --quiet") in ci


class TestTables:
    """What is listed in the documents is what there is."""

    def first_column(self, page, heading):
        section = (ROOT / "docs" / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
        return [name for name in re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)]

    def test_samplers(self):
        assert set(self.first_column("samplers.md", "How to choose")) == set(samplers.SAMPLERS)

    def test_knobs(self):
        fields = ({field.name for field in dataclasses.fields(sampler)} for sampler in (samplers.DDIM, samplers.LMS))
        shared, listed = set.intersection(*fields), set(self.first_column("samplers.md", "Knobs"))
        assert shared - listed == {"dynamic_thresholding_ratio", "sample_max_value"}  # of `thresholding`
        assert listed <= shared

    def test_presets(self):
        assert set(self.first_column("training.md", "Presets")) == set(training.PRESETS)

    def test_metrics(self):
        functions = {name for name in evaluation.__all__ if inspect.isfunction(getattr(evaluation, name))}
        of_metrics = {name for name in functions if getattr(evaluation, name).__module__ == metrics.__name__}
        assert set(self.first_column("evaluation.md", "The metrics")) == of_metrics - {"kid_subsets"}  # a way of `kid`

    def test_protocols(self):
        listed = set(self.first_column("evaluation.md", "Protocols"))
        assert listed == {name for name in features.NAMES if name == "pixels" or name.startswith("inception-2048/")}

    def test_figures(self):
        shown = {arguments.split()[0] for command, arguments in commands(EVALUATION.read_text()) if command == "figure"}
        assert shown - {"NAME"} == set(get_args(figures.Name))

    def test_modules_of_the_api(self):
        pages = "".join(path.read_text() for path in DOCS)
        shown = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
        modules = {name for name in ddpm_jax.__all__ if isinstance(getattr(ddpm_jax, name), types.ModuleType)}
        assert shown == {"ddpm_jax", *(f"ddpm_jax.{name}" for name in {*modules, *ddpm_jax._ON_FIRST_USE})}
        chosen = re.findall(r"^::: ([\w.]+)\n    options:\n      members: \[(.*)\]$", pages, re.MULTILINE)
        assert chosen
        for module, names in chosen:
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


SCRIPTS = {"convert/from_torch.py": "convert", "convert/to_torch.py": "export"}
COMMAND = re.compile(r"(?:^|[\s(])(?:ddpm-jax|python (convert/\w+\.py)) ?(.*)$")


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield every (command, arguments) of `ddpm-jax` in a document's shell blocks and sentences."""
    shell = "\n".join(re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)).replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    inline = (re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", prose))
    for line in (*shell.splitlines(), *inline):
        for part in re.split(r"&&|\||;", line.partition("  #")[0]):
            if match := COMMAND.search(part):
                script, rest = match.groups()
                command, _, arguments = (SCRIPTS[script] + " " + rest if script else rest).partition(" ")
                yield command, arguments


def help_of(*command: str) -> str:
    """Ask the command line itself, wide enough that nothing is cut off."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with mock.patch.dict(os.environ, COLUMNS="250"), contextlib.redirect_stdout(out), pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    out.seek(0)
    return out.read()


@functools.cache
def known_commands() -> tuple[str, ...]:
    return tuple(re.search(r"\{([\w,]+)\}", help_of())[1].split(","))


@functools.cache
def options_of(command: str) -> frozenset[str]:
    """An option begins its cell in the help; what it means, which may name other options, is indented or apart."""
    cells = re.findall(r"│ (-{1,2}[a-z][\w-]*(?:, -{1,2}[a-z][\w-]*)*)(?=[ │])", help_of(command))
    return frozenset(name for cell in cells for name in cell.split(", "))


def wrong_options(text: str) -> list[str]:
    """Return "COMMAND OPTION" of every option in a document that its command does not have."""
    wrong = []
    for command, arguments in commands(text):
        names = known_commands() if command == "COMMAND" else [command] if command in known_commands() else []
        wrong += [] if names or not command else [f"ddpm-jax {command}"]
        given = re.findall(r"(?<!\S)(--?[a-z][\w-]*)", arguments)
        wrong += [f"{name} {option}" for name in names for option in given if option not in options_of(name)]
    return wrong


class TestCommandLine:
    @each_document
    def test_options_exist(self, path):
        assert wrong_options(path.read_text()) == []

    def test_options_without_a_command_are_some_commands(self):
        every = frozenset().union(*(options_of(command) for command in known_commands()))
        for path in (ROOT / "README.md", *DOCS):
            prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
            for code in re.findall(r"`(--[^`]+)`", prose):
                for option in re.findall(r"(?<!\S)(--[a-z][\w-]*)", code):
                    assert option in every, (path.name, option)

    def test_documents_show_commands(self):
        shown = {command for path in DOCUMENTS for command, _ in commands(path.read_text())}
        assert shown >= set(known_commands())

    @pytest.mark.parametrize(
        "text, wrong",
        [
            ("Say `ddpm-jax info M --batch-size 4`.", ["info --batch-size"]),  # an option of `sample`
            ("Say `ddpm-jax sample --gif`, or `python convert/to_torch.py A B --gif`.", ["export --gif"]),
            ("```bash\nddpm-jax sample --fast   # not --slow\n```", []),
            ("```bash\nA=2 ddpm-jax train --data photos \\\n    --num-images 3\n```", ["train --num-images"]),
            ("```bash\npip install . && ddpm-jax sample --quick\n```", ["sample --quick"]),
            ("`ddpm-jax\ntrain --preset NAME --fast`", ["train --fast"]),
            ("`ddpm-jax ema RUN OUT --power-ema 0.1`", ["ema --power-ema"]),  # which the help of `ema` mentions
            ("`ddpm-jax judge`", ["ddpm-jax judge"]),
            (
                "`ddpm-jax COMMAND --seed 1`",
                [f"{name} --seed" for name in "ema compile convert export info stats".split()],
            ),
        ],
    )
    def test_wrong_options_are_found(self, text, wrong):
        assert wrong_options(text) == wrong
