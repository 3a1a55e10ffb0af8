"""`ddpm-jax evaluate`: what it prints and writes, refuses in flags, and does in several processes."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import small_params
from test_checkpoint import write_flat
from test_evaluating import FAKE, REAL, SHORT, folder_of

from ddpm_jax.cli import main
from ddpm_jax.evaluation.report import read_report


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Real images and fakes, in files of the working directory."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "real.npz", images=REAL)
    np.savez(tmp_path / "fake.npz", images=FAKE)
    return str(tmp_path / "fake.npz"), str(tmp_path / "real.npz")


class TestCommand:
    def run(self, capsys, *words):
        main(["evaluate", *map(str, words)])
        return capsys.readouterr()

    def fails(self, capsys, message, *words):
        with pytest.raises(SystemExit) as error:
            self.run(capsys, *words)
        assert error.value.code == 1
        said = capsys.readouterr()
        assert re.search(message, said.err), said.err

    def test_evaluates_a_model(self, capsys, sets, tmp_path):
        """And draws as many images as the reference has."""
        model = write_flat(tmp_path / "model", small_params(), SHORT)
        words = ("--sampler", "ddim", "--steps", 2, "--set", "eta=0.5", "--num-resamples", 4, "--bpd", 4)
        said = self.run(capsys, model, "--reference", sets[1], *words, "--out", "out", "--seed", 1)
        assert re.search(r"fid: [\d.]+ \(95%: [\d.]+ to [\d.]+\); real images: [\d.]+", said.out)
        assert re.search(r"bits_per_dim: [\d.]+ \+- [\d.e-]+", said.out)
        assert "inception_score: not computed, pixels has no logits" in said.out
        assert "ddpm-jax: IMAGES has 40 images, but a covariance of 64 features" in said.err
        report = read_report("out")
        assert report["protocol"]["num_images"] == 40 and len([*Path("out/samples").glob("0*.png")]) == 40
        assert report["protocol"]["drawn"]["sampler"] == "DDIM(num_steps=2, eta=0.5)"
        assert report["settings"]["images"]["origin"] == {"source": str(model)}
        said = self.run(capsys, "--verify", "out/report.json")
        assert "out/report.json is reproduced" in said.out

    def test_evaluates_images(self, capsys, sets, tmp_path):
        folder = folder_of(tmp_path / "images", FAKE)
        for number, images in enumerate((sets[0], folder)):
            self.run(capsys, images, "--reference", sets[1], "--num-resamples", 0, "--out", number)
        one, other = (json.loads(Path(name, "report.json").read_text())["results"] for name in "01")
        assert one == other

    def test_refuses_in_flags(self, capsys, sets, tmp_path):
        reference = ("--reference", sets[1])
        self.fails(capsys, "--reference is missing", sets[0])
        words = (sets[0], *reference, "--sampler", "ddim", "--steps", 3)
        self.fails(capsys, "IMAGES .*npz are images; leave --sampler, --steps out", *words)
        self.fails(capsys, "IMAGES .* are images; leave --bpd out", sets[0], *reference, "--bpd", 3)
        words = ("x", "--verify", "y", "--seed", 4)
        self.fails(capsys, "--verify takes all from the report; leave IMAGES, --seed out", *words)
        self.fails(capsys, "There is no file y", "--verify", "y")
        self.fails(capsys, "--level is 2.0; it must lie", sets[0], *reference, "--level", 2)
        self.fails(capsys, "--reference nowhere: there is no such", sets[0], "--reference", "nowhere")
        self.fails(capsys, "IMAGES nowhere.npz: there is no such", "nowhere.npz", *reference)
        model = write_flat(tmp_path / "model", small_params(), SHORT)
        self.fails(capsys, "--ode adds to --bpd, which is 0", model, *reference, "--ode")
        self.fails(capsys, "--fast is a sampler", model, *reference, "--fast", "--sampler", "ddim")
        assert not Path("evaluation").exists()

    @pytest.mark.slow
    def test_the_demo(self, capsys, sets):
        """Verified in a new process."""
        words = ("--reference", "digits", "--num-images", 32, "--fast", "--bpd", 4, "--num-resamples", 20)
        self.run(capsys, "digits-16", *words, "--out", "out")
        program = [sys.executable, "-m", "ddpm_jax", "evaluate", "--verify", "out/report.json"]
        result = subprocess.run(program, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "is reproduced" in result.stdout and "Differs" not in result.stdout


@pytest.mark.slow
def test_two_processes_with_two_devices_each(sets, tmp_path):
    """Both draw, the first one does the rest. The numbers are those of one process but for roundings."""
    model = write_flat(tmp_path / "model", small_params(), SHORT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = os.environ | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    words = ("evaluate", model, "--reference", sets[1], "--sampler", "ddim", "--steps", 2, "--num-images", 13)
    words = (*words, "--batch-size", 4, "--num-resamples", 0, "--bpd", 5)
    joined = ("--out", "two", "--coordinator", f"127.0.0.1:{port}", "--num-processes", 2, "--process-id")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "ddpm_jax", *map(str, (*words, *joined, i))],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "fid: " in said[0][0] and "fid: " not in said[1][0]
    main([str(word) for word in (*words, "--out", "one")])
    two, one = (read_report(name) for name in ("two", "one"))
    assert two["environment"]["hardware"]["num_processes"] == 2
    for name, score in one["results"]["metrics"].items():
        np.testing.assert_allclose(two["results"]["metrics"][name]["value"], score["value"], rtol=0.02, atol=0.01)
    bits = [report["results"]["likelihood"]["bits_per_dim"]["value"] for report in (one, two)]
    np.testing.assert_allclose(*bits, rtol=1e-5)  # another batch on each device, in float32
