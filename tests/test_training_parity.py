"""Training compared with PyTorch: diffusers' network, AdamW and EMAModel; diffusers opens a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_params

import ddpm_jax
from ddpm_jax import cli, losses, sharding
from ddpm_jax.checkpoint import to_state_dict
from ddpm_jax.training import DataConfig, EmaConfig, LoopConfig, OptimizerConfig, TrainConfig
from ddpm_jax.training.step import Plan, compiled, create

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

RATE, STEPS, BATCH = 1e-3, 20, 8
CONFIG = TrainConfig(
    data=DataConfig(data="digits"),
    optimizer=OptimizerConfig(optimizer="adamw", learning_rate=RATE, warmup_steps=4, weight_decay=0.01),
    ema=EmaConfig(ema_decay=0.9999, ema_power=0.75),
    loop=LoopConfig(batch_size=BATCH, steps=STEPS),
)


def theirs(params):
    items = {name: value for name, value in params.config.unet.to_dict().items() if not name.startswith("_")}
    net = diffusers.UNet2DModel(**items)
    net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in to_state_dict(params).items()})
    return net.train()


def images(number):
    return np.random.default_rng(number).integers(0, 256, (BATCH, 8, 8, 1), np.uint8)


def drawn(step):
    """What our step draws: (x_0, eps, t)."""
    loss_key, _, t_key = jax.random.split(jax.random.fold_in(jax.random.key(0), step), 3)
    t = losses.draw_timesteps(t_key, jnp.arange(BATCH), 1000, antithetic=False)
    keys = [jax.random.fold_in(jax.random.fold_in(loss_key, i), 1) for i in range(BATCH)]
    eps = np.stack([jax.random.normal(key, (8, 8, 1)) for key in keys])
    return images(step).astype(np.float32) / 127.5 - 1, eps, np.asarray(t)


def nchw(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))


def their_loss(net, step):
    x_0, eps, t = drawn(step)
    noisy = diffusers.DDPMScheduler().add_noise(nchw(x_0), nchw(eps), torch.from_numpy(t.astype(np.int64)))
    return torch.nn.functional.mse_loss(net(noisy, torch.from_numpy(t.astype(np.int64))).sample, nchw(eps))


def test_loss_and_every_gradient():
    params = make_params()
    x_0, _, t = drawn(0)
    loss_key, *_ = jax.random.split(jax.random.fold_in(jax.random.key(0), 0), 3)
    mean = lambda params: losses.per_image(params, loss_key, x_0, t=t)[0].mean()
    value, gradient = jax.value_and_grad(mean)(params)
    net = theirs(params)
    loss = their_loss(net, 0)
    loss.backward()
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    ours = to_state_dict(gradient)
    norm = np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in ours.values()))
    for name, parameter in net.named_parameters():
        expected = parameter.grad.numpy()
        # relative to the tensor's own size; gradients that are zero but for rounding, to that of all
        scale = max(np.abs(expected).max(), 1e-3 * norm)
        np.testing.assert_allclose(ours[name], expected, atol=1e-4 * scale, err_msg=name)


def test_twenty_steps_of_adam_and_the_average():
    params = make_params()
    mesh, run = sharding.data_mesh(), Plan(params.config, CONFIG)
    state = create(run, params.weights, mesh)
    step = compiled(run, state, mesh)
    net = theirs(params)
    adam = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01, eps=1e-8)
    rate = torch.optim.lr_scheduler.LambdaLR(adam, lambda number: min(number / 4, 1))
    average = diffusers.training_utils.EMAModel(
        net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    for number in range(STEPS):
        state, metrics = step(state, *sharding.place((images(number), None), mesh, split=True))
        loss = their_loss(net, number)
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        adam.step()
        rate.step()
        average.step(net.parameters())
        np.testing.assert_allclose(metrics.loss, loss.item(), rtol=1e-3)
        np.testing.assert_allclose(metrics.grad_norm, norm.item(), rtol=1e-2)
    # Adam makes a full step of a gradient that is rounding alone: a few weights may be off by some
    for ours, parameters in ((state.weights, net.parameters()), (state.ema, average.shadow_params)):
        tensors = to_state_dict(params.replace(weights=ours))
        names = [name for name, _ in net.named_parameters()]
        gaps = np.concatenate(
            [np.abs(tensors[name] - p.detach().numpy()).ravel() for name, p in zip(names, parameters, strict=True)]
        )
        assert (gaps < 2 * RATE).mean() > 0.999
        assert np.median(gaps) < 1e-2 * RATE


def test_diffusers_samples_a_published_run(tmp_path):
    """`train`, then `export`: DDPMPipeline opens the folder and its network is the average of ours."""
    np.save(tmp_path / "images.npy", np.concatenate([images(number) for number in range(5)]))
    (tmp_path / "network.json").write_text(json.dumps(make_params().config.unet.to_dict()))
    words = ["--data", tmp_path / "images.npy", "--model-config", tmp_path / "network.json", "--resolution", 8]
    words += ["--batch-size", 8, "--steps", 4, "--warmup-steps", 0, "--sample-every", 0, "--out", tmp_path / "run"]
    cli.main(["train", *map(str, words)])
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "published")])

    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "published")
    params = ddpm_jax.load(tmp_path / "run")
    x, t = images(9).astype(np.float32) / 255, np.arange(BATCH) * 100
    with torch.no_grad():
        expected = pipeline.unet(nchw(x), torch.from_numpy(t)).sample
    got = np.moveaxis(np.asarray(ddpm_jax.apply(params, x, t)), -1, 1)
    np.testing.assert_allclose(got, expected, atol=2e-5 * float(expected.abs().max()))  # what the network promises
    assert pipeline.scheduler.config.num_train_timesteps == 1000
    (image,) = pipeline(batch_size=1, num_inference_steps=2).images
    assert image.size == (8, 8)
