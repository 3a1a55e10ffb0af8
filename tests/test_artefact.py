"""Compiling ahead: the artefact runs in a process that does not know us, for any batch."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT, make_params
from test_checkpoint import write_flat

import ddpm_jax
import ddpm_jax.artefact
from ddpm_jax import cli, samplers

SAMPLER = samplers.DPMSolverPP(num_steps=3)
PROGRAM = """
import runpy, sys
sys.modules["ddpm_jax"] = None
here = runpy.run_path("out/run.py")
jax, np, sampler = here["jax"], here["np"], here["sampler"]
more = jax.jit(sampler.call)(here["weights"], here["key"], np.arange(5, 7, dtype=np.int32){labels})
np.save("more.npy", more)
print(sampler.platforms)
"""


@pytest.mark.parametrize("classes", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_an_artefact_runs_without_us(tmp_path, classes):
    params = make_params(num_class_embeds=classes)
    model = write_flat(tmp_path / "model", params)
    words = ["--sampler", "dpmsolver++", "--steps", "3"]
    cli.main(["compile", str(model), str(tmp_path / "out"), *words])
    program = PROGRAM.format(labels=", np.array([2, 1], np.int32)" if classes else "")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "cpu" in result.stdout and "cuda" in result.stdout and "tpu" in result.stdout
    # another compilation; x_0_hat is x_t divided by 0.006 at first
    labels = {} if classes is None else {"class_labels": 0}
    expected = ddpm_jax.sample(params, jax.random.key(0), 4, sampler=SAMPLER, **labels)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-4)
    labels = {} if classes is None else {"class_labels": np.array([2, 1])}
    expected = ddpm_jax.sample(params, jax.random.key(0), 2, sampler=SAMPLER, first_index=5, **labels)
    np.testing.assert_allclose(np.load(tmp_path / "more.npy"), expected, atol=1e-4)


def test_the_documentation_shows_the_script():
    lines = ddpm_jax.artefact.SCRIPT.format(labels="").splitlines()[4:]
    assert "\n".join(lines) in (ROOT / "docs/sampling.md").read_text()


def test_refusals(tmp_path, capsys, monkeypatch):
    model = write_flat(tmp_path / "model", make_params())
    words = ["compile", str(model), str(tmp_path / "out"), "--sampler", "ddim", "--steps", "2"]
    with pytest.raises(SystemExit):
        cli.main([*words, "--platforms", "cpu", "gpu"])
    assert "must be some of cpu, cuda, tpu, not gpu" in capsys.readouterr().err
    with pytest.raises(ValueError, match="`platforms` must be some of cpu, cuda, tpu, not none"):
        ddpm_jax.artefact.write_artefact(make_params(), SAMPLER, tmp_path / "out", platforms=())
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("")
    with pytest.raises(SystemExit):
        cli.main([*words, "--force"])
    assert (tmp_path / "out/precious").exists()
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match="compile"):
        ddpm_jax.artefact.write_artefact(make_params(), SAMPLER, tmp_path / "other")
