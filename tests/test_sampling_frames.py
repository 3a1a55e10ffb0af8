"""What is seen of a run on the way, and runs with classes: frame by frame against a plain loop over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_params

import ddpm_jax
from ddpm_jax import samplers
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.sampling import as_function
from ddpm_jax.sampling.guidance import Condition, guided

SHORT = ScheduleConfig(num_train_timesteps=12)
KEY = jax.random.key(0)


def in_unit_range(x):
    return np.clip((x + 1) / 2, 0, 1)


def loop(params, sampler, batch_size=2, labels=None, guidance=None, shown=in_unit_range, begin=None):
    """Every row of a sampler in numpy, the network by `apply`: (x_t, x_0_hat) of each row, and the result, as shown.

    `guidance` is (scale, null class); `begin` is what the run begins with instead of noise.
    """
    table = sampler.table(params.config.schedule)
    keys = [jax.random.fold_in(KEY, i) for i in range(batch_size)]
    draw = lambda number: np.stack([jax.random.normal(jax.random.fold_in(key, number), (8, 8, 1)) for key in keys])
    begin = draw(0) if begin is None else begin
    state = [table.init_scale * begin] + [np.zeros((batch_size, 8, 8, 1))] * (table.mix.shape[1] - 1)
    frames = []
    for row in range(table.num_rows):
        x_t, t = state[0].astype(np.float32), float(table.t[row])
        out = np.asarray(ddpm_jax.apply(params, x_t, t, labels))
        if guidance is not None:
            scale, null_class = guidance
            of_none = np.asarray(ddpm_jax.apply(params, x_t, t, null_class))
            out = of_none + scale * (out - of_none)
        x_0_hat = table.x_0_coefs[row, 0] * x_t + table.x_0_coefs[row, 1] * out
        x_0_hat = x_0_hat if table.clip is None else np.clip(x_0_hat, -table.clip, table.clip)
        eps_hat = table.eps_coefs[row, 0] * x_t + table.eps_coefs[row, 1] * out
        frames.append((shown(x_t), shown(x_0_hat)))
        images = [*state, x_0_hat, eps_hat, draw(row + 1)]
        state = [sum(w * image for w, image in zip(weights, images, strict=True)) for weights in table.mix[row]]
    return frames, shown(state[0])


SAMPLERS = [
    samplers.DDPM(),
    samplers.DDIM(num_steps=6, eta=0.7, set_alpha_to_one=False),  # whose result is not the last x_0_hat
    samplers.DPMSolverPP(num_steps=6, solver_order=3, clip=1.0),
    samplers.Heun(num_steps=5, s_churn=4.0, clip=1.0),
]
each = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: type(sampler).__name__)


@each
def test_every_frame_of_a_path(sampler):
    """The image that the network saw and the one it led to, in the last row of each step; the last is the result."""
    params = small_params(schedule=SHORT)
    frames, result = loop(params, sampler)
    table = sampler.table(SHORT)
    ends = np.flatnonzero(table.ends_step)
    kept = ends[[0, 2, -1]] if len(ends) == 5 else ends[np.linspace(0, len(ends) - 1, 3).round().astype(int)]
    path = ddpm_jax.sample_path(params, KEY, 2, num_frames=3, sampler=sampler)
    np.testing.assert_allclose(path.t, table.t[kept], rtol=1e-6)
    np.testing.assert_allclose(path.x_t, np.stack([frames[row][0] for row in kept]), atol=1e-4)  # 12 forwards of 1e-6,
    expected = [*(frames[row][1] for row in kept[:-1]), result]  # over sqrt(alpha_bar), which is 0.9 on this schedule
    np.testing.assert_allclose(path.x_0_hat, np.stack(expected), atol=1e-4)
    assert min(np.abs(one - other).max() for one, other in zip(expected, expected[1:], strict=False)) > 1e-2
    assert all(np.abs(frames[row][0] - frames[row][1]).max() > 1e-2 for row in kept[:-1])  # the last has little noise


@each
@pytest.mark.parametrize("chunk", [1, 4])
def test_every_image_of_the_chunks(sampler, chunk):
    """The x_0_hat of a chunk's last row, and the result at the end."""
    params = small_params(schedule=SHORT)
    frames, result = loop(params, sampler)
    ends = sampler.table(SHORT).ends_step
    rows = [*range(chunk, len(ends), chunk), len(ends)]
    seen = list(ddpm_jax.sample_chunks(params, KEY, 2, chunk=chunk, sampler=sampler))
    assert [(done, total) for done, total, _ in seen] == [(ends[:row].sum(), ends.sum()) for row in rows]
    for row, (_, _, image) in zip(rows, seen, strict=True):
        np.testing.assert_allclose(image, result if row == len(ends) else frames[row - 1][1], atol=1e-4)  # as above


@pytest.mark.parametrize("guidance", [None, (2.5, 3)])
def test_a_class_conditional_run(guidance):
    """Each image by its own label; another label is another image, and leaves its neighbour as it is."""
    params = small_params(num_class_embeds=4, schedule=SHORT)
    sampler = samplers.DDIM(num_steps=5)
    more = {} if guidance is None else {"guidance_scale": guidance[0], "null_class": guidance[1]}
    draw = lambda labels: np.asarray(
        ddpm_jax.sample(params, KEY, 3, sampler=sampler, class_labels=np.asarray(labels), **more)
    )
    images = draw([0, 2, 1])
    _, expected = loop(params, sampler, 3, np.array([0, 2, 1]), guidance)
    np.testing.assert_allclose(images, expected, atol=1e-4)  # as above
    other = draw([0, 1, 1])
    np.testing.assert_allclose(other[[0, 2]], images[[0, 2]], atol=1e-6)
    assert np.abs(other[1] - images[1]).max() > 1e-2
    path = ddpm_jax.sample_path(params, KEY, 3, num_frames=2, sampler=sampler, class_labels=[0, 2, 1], **more)
    np.testing.assert_allclose(path.x_0_hat[-1], images, atol=1e-5)
    if guidance is None:
        plain = as_function(params.config, sampler)(params.weights, KEY, jnp.arange(3), jnp.array([0, 2, 1]))
        np.testing.assert_allclose(plain, images, atol=1e-5)
    *_, (_, _, last) = ddpm_jax.sample_chunks(params, KEY, 3, chunk=2, sampler=sampler, class_labels=[0, 2, 1], **more)
    np.testing.assert_allclose(last, images, atol=1e-5)


def test_images_of_a_variance_exploding_network():
    """Its data lies in [0, 1], and so do what it draws, what is seen on the way and what is inverted."""
    schedule = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=5.0, num_train_timesteps=20)
    params = small_params(schedule=schedule, time_embedding_type="fourier")
    sampler = samplers.Euler(num_steps=4, timestep_spacing="logsnr", clip=1.0)
    frames, result = loop(params, sampler, shown=lambda x: np.clip(x, 0, 1))
    np.testing.assert_allclose(ddpm_jax.sample(params, KEY, 2, sampler=sampler), result, atol=1e-4)  # as above
    path = ddpm_jax.sample_path(params, KEY, 2, num_frames=4, sampler=sampler)
    np.testing.assert_allclose(path.x_t, np.stack([x_t for x_t, _ in frames]), atol=1e-3)  # x_t is 5 times as large
    assert 0.1 < np.mean((result > 0) & (result < 1))  # what is clipped hides errors


@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_an_inversion_row_by_row(kind):
    """From the images on the data's scale to the noise, without drawing any."""
    if kind == "vp":
        params = small_params(schedule=SHORT)
    else:
        schedule = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=5.0, num_train_timesteps=20)
        params = small_params(schedule=schedule, time_embedding_type="fourier")
    sampler = samplers.DDIMInverse(num_steps=3, timestep_spacing="trailing")
    images = np.random.default_rng(3).uniform(0, 1, (2, 8, 8, 1)).astype(np.float32)
    begin = 2 * images - 1 if kind == "vp" else images
    _, expected = loop(params, sampler, shown=lambda x: x, begin=begin)
    x_T = ddpm_jax.invert(params, images, sampler=sampler)
    np.testing.assert_allclose(x_T, expected, atol=2e-4 * np.abs(expected).max())  # 9 forwards of 1e-6 each, through
    assert np.abs(x_T - begin).max() > 0.1  # differences of neighbouring levels that are divided by sigma


def test_guidance_leaves_a_learned_variance_alone():
    """It is that of the class: with a mean that no class changes, guidance changes no bit of the noise's scale."""

    def net_fn(x, cond, labels):
        return jnp.concatenate([0 * x, x * labels[:, None, None, None]], axis=-1)

    labels = jnp.array([1, 2])
    x = jnp.ones((2, 4, 4, 1))
    out = guided(net_fn, Condition(labels, np.float32(5), np.int32(0)), channels=1)(x, None, labels)
    np.testing.assert_array_equal(out[..., 1], net_fn(x, None, labels)[..., 1])
