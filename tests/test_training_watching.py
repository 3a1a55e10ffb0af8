"""What a run reports: the lines of its log; and a class-conditional run, from pictures to guided samples of a class."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import cli, losses
from ddpm_jax.losses import Objective
from ddpm_jax.training import (
    DataConfig,
    EmaConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    logs,
    train,
)
from ddpm_jax.training.step import Metrics


def test_lines_are_means_over_their_steps(tmp_path):
    """A line has the means of loss, quarters and norm over two steps, and the last learning rate."""
    told = [
        Metrics(*np.float32([1.0, 3.0, 0.1]), np.float32([2, 0, 6, 0]), np.float32([2, 0, 3, 0])),
        Metrics(*np.float32([2.0, 5.0, 0.2]), np.float32([4, 0, 1, 8]), np.float32([1, 0, 1, 4])),
        Metrics(*np.float32([7.0, 1.0, 0.3]), np.float32([1, 1, 1, 1]), np.float32([1, 1, 1, 1])),
    ]
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 9.0}\n{"step": 4, "loss": 9.0}\n{"step"')
    log = logs.Log(tmp_path, start=2, stop=5, every=2, batch_size=8, writes=True, tensorboard=False)
    for step, metrics in enumerate(told, 3):
        log.add(step, metrics)
    log.flush(5)
    log.close()
    before, first, last = logs.read(tmp_path)
    assert before == {"step": 2, "loss": 9.0}  # step 4 was done again
    rates = {first.pop(name) / last.pop(name) for name in ("steps_per_second", "images_per_second")}
    assert len({round(rate, 6) for rate in rates}) == 1
    numbers = {"step": 4, "loss": 1.5, "loss_q1": 2.0, "loss_q2": None, "loss_q3": 1.75, "loss_q4": 2.0}
    assert first == pytest.approx(numbers | {"grad_norm": 4.0, "learning_rate": 0.2})
    assert last["step"] == 5 and last["loss"] == 7.0


@pytest.mark.slow
def test_classes_from_training_to_samples(tmp_path):
    """Trained on dark and bright pictures with label dropout, the guided samples of a class look like the class."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 56, (40, 8, 8, 1), np.uint8)
    labels = np.arange(40) % 2
    images[labels == 1] += 200
    np.savez(tmp_path / "images.npz", images=images, labels=labels, class_names=np.array(["dark", "bright"]))
    config = TrainConfig(
        data=DataConfig(
            **{"data": str(tmp_path / "images.npz"), "held_out": str(tmp_path / "images.npz")},
            **{"class_conditional": True, "flip": False, "workers": 2},
        ),
        model=ModelConfig(
            **{"channels": 16, "channel_multipliers": (1,), "layers_per_block": 1, "attention_resolutions": ()},
            **{"norm_num_groups": 4, "prediction_type": "sample"},
        ),
        objective=Objective(label_dropout=0.2, weighting="min_snr"),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=5),
        ema=EmaConfig(ema_decay=0.9),
        loop=LoopConfig(
            **{"batch_size": 16, "steps": 60, "save_every": 60, "log_every": 20, "validate_every": 60},
            **{"sample_every": 60, "num_samples": 3, "sample_evals": 2},
        ),
    )
    params = train(config, tmp_path / "run")
    assert params.config.unet.num_class_embeds == 3
    assert (params.config.class_names, params.config.null_class) == (("dark", "bright"), 2)
    (held_out,) = (line["validation_loss"] for line in logs.read(tmp_path / "run") if "validation_loss" in line)
    x_0, objective = images.astype(np.float32) / 127.5 - 1, Objective(weighting="min_snr")
    true, wrong = (
        losses.per_image(params, jax.random.key(0), x_0, classes, objective=objective)[0].mean()
        for classes in (labels, 1 - labels)
    )
    np.testing.assert_allclose(held_out, true, rtol=1e-5)  # of the true classes, none dropped
    assert true < 0.8 * wrong

    opened, means = ddpm_jax.load(tmp_path / "run"), {}
    for name in ("dark", "bright"):
        words = ("--class-label", name, "--guidance-scale", "2", "--sampler", "ddim", "--steps", "5")
        cli.main(["sample", str(tmp_path / "run"), *words, "--batch-size", "2", "--out", str(tmp_path / name)])
        pictures = [np.asarray(Image.open(tmp_path / name / f"{i:05d}.png")).astype(int) for i in range(2)]
        means[name] = np.mean(pictures)
        guided = {"class_labels": ("dark", "bright").index(name), "guidance_scale": 2.0}
        direct = ddpm_jax.sample(opened, jax.random.key(0), 2, sampler=ddpm_jax.samplers.DDIM(num_steps=5), **guided)
        assert np.abs(np.stack(pictures) - ddpm_jax.to_uint8(direct)[..., 0]).max() <= 1
    assert means["bright"] > means["dark"] + 100  # the data's means are 200 apart
    # the grid of the run: each class, and the one that stands for none, with their names below
    captions, fast = ["dark", "bright", "class 2"], dataclasses.replace(ddpm_jax.samplers.by_name("fast"), num_steps=2)
    expected = ddpm_jax.sample(params, jax.random.key(0), 3, sampler=fast, class_labels=np.arange(3))
    picture = np.asarray(Image.open(tmp_path / "run/samples/step-00000060.png")).astype(int)
    assert np.abs(picture - ddpm_jax.plotting.grid(expected, captions=captions)[..., 0]).max() <= 1
