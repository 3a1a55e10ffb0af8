"""The command line of training: refusals, and the defaults that presets give."""

import inspect
import json
import os
from pathlib import Path

import pytest
from conftest import small_params

from ddpm_jax import cli
from ddpm_jax.cli.training import train_command
from ddpm_jax.training import PRESETS, ModelConfig
from ddpm_jax.training.network import network, own_resolution
from ddpm_jax.training.published import average


def defaults_of(*words):
    return inspect.signature(train_command(["train", *words])).parameters["config"].default


def fails(capsys, *words):
    """Return the one line that the command prints."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *map(str, words)])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith("ddpm-jax: ") and said.count("\n") == 1
    return said


def test_command_line_refuses(capsys, tmp_path):
    assert "is missing: a folder of images" in fails(capsys, "--out", tmp_path / "run")
    assert "--preset tiny is unknown. Did you mean `tiny-16`?" in fails(capsys, "--preset", "tiny", "--data", "digits")
    words = ("--preset", "tiny-16", "--data", "digits", "--resolution", 18)
    assert "--resolution 18 cannot be halved 2 times: use 16 or 20." in fails(capsys, *words, "--out", tmp_path / "run")
    words = ("--init", tmp_path / "model", "--channel_multipliers", 1, 2, "--beta-schedule=linear")
    message = (
        "--channel-multipliers belongs to a run without --init and --model-config, which bring their own; here (1, 2)"
    )
    assert message in fails(capsys, *words)
    words = ("--init", tmp_path / "model", "--beta-schedule=linear")
    assert "--beta-schedule belongs to a run without --init" in fails(capsys, *words)  # though it is the default
    words = ("--model-config", tmp_path / "a.json", "--channels", 128)
    assert "--channels belongs to a run without --init and --model-config" in fails(capsys, *words)
    words = ("--model-config", tmp_path / "a.json", "--init", tmp_path / "model")
    assert "--model-config belongs to a run without --init" in fails(capsys, *words)


@pytest.mark.parametrize("resolution", [32, 48, 64, 128, 256])
def test_the_default_preset_at_any_resolution(resolution):
    """Attention stays at its level."""
    command = train_command(["train", "--data", "photos", "--resolution", str(resolution)])
    defaults = inspect.signature(command).parameters["config"].default
    built = network(defaults, resolution, 3)
    assert built.unet.down_block_types == ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D")


def test_a_network_that_is_brought_has_its_resolution(tmp_path):
    defaults = inspect.signature(train_command(["train", "--init", "model"])).parameters["config"].default
    assert defaults.model == ModelConfig(init="model") and defaults.optimizer == PRESETS["fine-tune"].optimizer
    assert defaults.data.resolution is None
    defaults = inspect.signature(train_command(["train", "--model_config=a.json"])).parameters["config"].default
    assert defaults.data.resolution is None and defaults.optimizer == PRESETS["small-32"].optimizer
    (tmp_path / "network.json").write_text(json.dumps(small_params().config.unet.to_dict()))
    assert own_resolution(ModelConfig(model_config=tmp_path / "network.json")) == 8


def test_a_bucket_is_no_folder_to_train_in(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("--preset", "tiny-16", "--data", "digits", "--out", "gs://bucket/run")
    assert "gs://bucket/run is no local path: mount it" in fails(capsys, *words)
    with pytest.raises(ValueError, match="s3://bucket/run is no local path"):
        average("s3://bucket/run", 0.1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("preset", [name for name in PRESETS])
def test_a_preset_for_a_network_that_is_brought(preset):
    """Settings that the checkpoint brings are not given; the others are the preset's."""
    whole, made = PRESETS[preset], defaults_of("--preset", preset, "--init", "model")
    assert made.model == ModelConfig(init="model", dropout=whole.model.dropout)
    assert made.objective.variance_type == "fixed_small" and made.optimizer == whole.optimizer
    made = defaults_of("--preset", preset, "--model-config", "a.json")
    kept = {name: getattr(whole.model, name) for name in ("dropout", "beta_schedule", "prediction_type")}
    assert made.model == ModelConfig(model_config=Path("a.json"), **kept)
    assert made.objective == whole.objective


@pytest.fixture
def begun(monkeypatch):
    """Collect the configs that `train` is called with, instead of training."""
    configs = []
    monkeypatch.setattr("ddpm_jax.training.train", lambda config, out, resume: configs.append(config))
    return configs


def test_the_warm_up_of_a_preset_fits_the_steps(begun, tmp_path, caplog):
    """It is cut to a tenth of the steps, with a warning. A value that was given stays; a resumed run keeps its own."""
    words = ["train", "--data", "digits", "--out", str(tmp_path / "run"), "--resume"]
    cli.main([*words, "--steps", "100"])
    assert "The preset's warm-up of 500 steps is cut to 10, a tenth of --steps 100" in caplog.text
    cli.main([*words, "--steps", "501"])
    cli.main([*words, "--steps", "100", "--warmup-steps", "70"])
    cli.main([*words, "--steps", "1", "--preset", "tiny-16"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run/train.json").write_text(json.dumps({"config": {"optimizer": {"warmup_steps": 600}}}))
    cli.main([*words, "--steps", "600"])
    cli.main([*words, "--steps", "600", "--warmup-steps", "3"])
    assert [config.optimizer.warmup_steps for config in begun] == [10, 500, 70, 0, 600, 3]


def test_help_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "exit code is 0 only when the last step is done. It is 143 after SIGTERM and 130 after Ctrl-C" in text
