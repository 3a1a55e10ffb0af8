"""The figures of the DDPM paper against their definitions."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from conftest import small_params

import ddpm_jax
from ddpm_jax import samplers, schedule
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.evaluation import figures, pictures
from ddpm_jax.evaluation.features import pixels as pixel_features
from ddpm_jax.params import run_network
from ddpm_jax.samplers import DDIM, DDPM
from ddpm_jax.sampling import run_part, table_of
from ddpm_jax.sampling.job import Job

KEY = jax.random.key(3)
SAMPLER = DDPM(num_steps=6, clip=None)  # timesteps 830, 664, 498, 332, 166, 0
EXPLODING = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0, num_train_timesteps=1000)
CLOSE = {"atol": 2e-5}  # float32 rounding of another batch size, through 6 steps
fold = jax.random.fold_in


@pytest.fixture(scope="module")
def params():
    return small_params(schedule=ScheduleConfig(prediction_type="sample"))  # of eps, results leave [0, 1]


def noise_of(index, draw):
    """The `draw`-th noise of an image: 0 is x_T."""
    return np.asarray(jax.random.normal(fold(fold(KEY, index), draw), (8, 8, 1)))


@functools.partial(jax.jit, static_argnums=0)
def run_rows(config, weights, table, x_t, indices):
    net_fn = lambda x, t: run_network(config, weights, x, t)
    return samplers.run(net_fn, table, x_t, KEY, indices=indices)


def directly(params, start, x_t, indices):
    """`samplers.run` of the rows from `start` on, as images in [0, 1]; the idle rows at the end save compiling."""
    table = SAMPLER.table(params.config.schedule)
    table = dataclasses.replace(table.part(start), init_scale=1.0).padded(table.num_rows)
    x_0 = run_rows(params.config.unet, params.weights, table, x_t, indices)
    return np.clip((np.asarray(x_0) + 1) / 2, 0, 1)


def images_of(seed, count=2):
    return np.random.default_rng(seed).uniform(0, 1, (count, 8, 8, 1)).astype(np.float32)


class TestRows:
    def test_even(self):
        table = DDPM().table(ScheduleConfig())
        assert table.t[figures.even_rows(table, 4)].tolist() == [999, 749, 499, 249]  # the paper's t - 1
        assert figures.even_rows(table, 1).tolist() == [0]

    def test_steps_of_several_rows(self):
        """Heun evaluates twice in each step but the last: steps begin in rows 0, 2, 4."""
        table = samplers.Heun(num_steps=5).table(ScheduleConfig())
        assert figures.even_rows(table, 5).tolist() == [0, 2, 4, 6, 8]
        assert figures.rows_at(table, [table.t[3]]).tolist() == [4]  # row 3 sees the level at which row 4 begins a step

    def test_the_nearest(self):
        table = SAMPLER.table(ScheduleConfig())
        assert figures.rows_at(table, [830, 590, 500, 0]).tolist() == [0, 1, 2, 5]

    @pytest.mark.parametrize("timesteps", [[], [831], [-1], [np.nan], [True]])
    def test_timesteps_that_are_not_visited(self, timesteps):
        with pytest.raises(ValueError, match="`timesteps` is .*; they must be numbers from 0 to 830"):
            figures.rows_at(SAMPLER.table(ScheduleConfig()), timesteps)

    def test_more_moments_than_steps(self):
        with pytest.raises(ValueError, match="7 moments are more than the 6 steps"):
            figures.even_rows(SAMPLER.table(ScheduleConfig()), 7)


class TestParts:
    def test_two_parts_are_the_whole(self, params):
        x_T = np.stack([noise_of(i, 0) for i in range(3)])
        x_t = run_part(params, KEY, x_T, start=0, stop=2, sampler=SAMPLER)
        x_0 = run_part(params, KEY, x_t, start=2, sampler=SAMPLER)
        whole = ddpm_jax.sample(params, KEY, 3, sampler=SAMPLER)
        np.testing.assert_allclose(np.clip((x_0 + 1) / 2, 0, 1), whole, **CLOSE)

    def test_images_of_one_number_draw_the_same(self, params):
        x_t = np.stack([noise_of(0, 0)] * 3)
        images = np.asarray(run_part(params, KEY, x_t, start=4, sampler=SAMPLER, indices=np.array([5, 5, 6])))
        np.testing.assert_array_equal(images[0], images[1])
        assert np.abs(images[2] - images[0]).max() > 0.01

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"x_t": np.zeros((2, 8, 8, 3), np.float32)}, r"`x_t` has shape \(2, 8, 8, 3\); this network takes"),
            ({"start": 6}, "Rows 6 up to None of this table are none"),
            ({"start": 3, "stop": 3}, "Rows 3 up to 3 of this table are none"),
            (
                {"sampler": samplers.LMS(num_steps=6)},
                "`sampler` is a multistep method, .* row 2 and cannot begin there",
            ),
            ({"indices": np.arange(3)}, r"`indices` has shape \(3,\); it must be \(2,\)"),
        ],
    )
    def test_bad_input(self, params, changes, message):
        given = {"x_t": np.zeros((2, 8, 8, 1), np.float32), "start": 2, "sampler": SAMPLER} | changes
        with pytest.raises(ValueError, match=message):
            run_part(params, KEY, given.pop("x_t"), **given)


@pytest.fixture(scope="module")
def shared(params):
    return figures.shared_latents(params, KEY, 3, timesteps=[830, 498, 332], sampler=SAMPLER, first_index=4)


class TestSharedLatents:
    def test_the_latents_are_those_of_the_sample(self, params, shared):
        """x_t of image 4; at first x_T itself."""
        assert shared.t.tolist() == [830, 498, 332]
        np.testing.assert_array_equal(shared.x_t[0], noise_of(4, 0))
        path = ddpm_jax.sample_path(params, KEY, 3, sampler=SAMPLER, num_frames=3, first_index=4)
        assert path.t[:2].tolist() == [830, 498]
        np.testing.assert_allclose(np.clip((shared.x_t[:2] + 1) / 2, 0, 1), np.asarray(path.x_t)[:2, 0], **CLOSE)

    @pytest.mark.parametrize("moment, row", [(0, 0), (1, 2), (2, 3)])
    def test_samples_go_on_from_one_latent(self, params, shared, moment, row):
        """They are what `samplers.run` makes of x_t with the noise of images 4, 5 and 6."""
        expected = directly(params, row, np.stack([shared.x_t[moment]] * 3), np.array([4, 5, 6]))
        np.testing.assert_allclose(shared.images[moment], expected, **CLOSE)

    def test_the_latent_is_the_same_to_the_bit(self, params, shared, monkeypatch):
        seen = []
        original = figures.run_part
        spy = lambda params, key, x_t, **rest: seen.append(np.array(x_t)) or original(params, key, x_t, **rest)
        monkeypatch.setattr(figures, "run_part", spy)
        again = figures.shared_latents(params, KEY, 3, timesteps=[332, 498], sampler=SAMPLER, first_index=4)
        for begun, x_t, before in zip(seen[-2:], again.x_t, shared.x_t[:0:-1], strict=True):
            np.testing.assert_array_equal(begun, np.stack([x_t] * 3))
            np.testing.assert_array_equal(x_t, before)

    def test_the_ends_differ(self, params, shared):
        """But for sample 0, which is the sample itself, wherever they part."""
        whole = np.asarray(ddpm_jax.sample(params, KEY, 3, sampler=SAMPLER, first_index=4))
        assert np.mean((0 < whole) & (whole < 1)) > 0.5  # clipped ones would be equal too easily
        for images in shared.images:
            np.testing.assert_allclose(images[0], whole[0], **CLOSE)
            for one, other in ((0, 1), (0, 2), (1, 2)):
                assert np.abs(images[one] - images[other]).max() > 0.01

    def test_four_moments_by_default(self, params):
        default = figures.shared_latents(params, KEY, 3, sampler=SAMPLER)
        assert default.t.tolist() == [830, 664, 332, 166] and default.images.shape == (4, 3, 8, 8, 1)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"sampler": DDIM(num_steps=6)}, "`sampler` draws no noise, .*such as ddpm, euler-a"),
            ({"num_samples": 0}, "`num_samples` must be at least 1, not 0"),
            ({"timesteps": [9999]}, "`timesteps` is .9999.; they must be numbers from 0 to 830"),
            ({"first_index": -1}, "`first_index` is -1; images are numbered from 0"),
            ({"sampler": DDPM(num_steps=3)}, "4 moments are more than the 3 steps"),
        ],
    )
    def test_bad_input(self, params, changes, message):
        given = {"sampler": SAMPLER, "num_samples": 2} | changes
        with pytest.raises(ValueError, match=message):
            figures.shared_latents(params, KEY, **given)


def test_noise_of_another_scale(monkeypatch):
    """A variance-exploding run begins at sigma_max noise, which `run_part` takes as it is."""
    params = small_params(schedule=EXPLODING)
    sampler = samplers.EulerAncestral(num_steps=5)
    scale = table_of(sampler, params.config).init_scale
    assert scale > 10
    seen = []
    monkeypatch.setattr(Job, "call", lambda job, function, origin, inputs: seen.append(origin) or origin.begin)
    x_t = np.ones((1, 8, 8, 1), np.float32)
    run_part(params, KEY, x_t, start=0, sampler=sampler)
    np.testing.assert_array_equal(seen[0].init_scale * seen[0].begin, x_t)
    monkeypatch.setattr(figures, "run_part", lambda params, key, x_t, **_: x_t)
    shared = figures.shared_latents(params, KEY, 1, timesteps=[scale], sampler=sampler)
    np.testing.assert_allclose(shared.x_t[0], scale * noise_of(0, 0), rtol=1e-6)


class TestInterpolation:
    def test_its_ends_are_reconstructions(self, params):
        """q(x_t | x_0) by eq. 4, with the noise of images 6 and 7; then the rows with the noise of image 6."""
        first, second = images_of(0, 1), images_of(1, 1)
        made = figures.interpolate(
            *(params, KEY, first, second), timesteps=[498], weights=[0, 0.25, 1], sampler=SAMPLER, first_index=6
        )
        alpha_bar = schedule.alphas_cumprod(params.config.schedule)[498]
        x_t, other = (
            np.sqrt(alpha_bar) * (2 * image[0] - 1) + np.sqrt(1 - alpha_bar) * noise_of(index, 0)
            for image, index in ((first, 6), (second, 7))
        )
        mixed = np.stack([x_t, 0.75 * x_t + 0.25 * other, other]).astype(np.float32)
        expected = directly(params, 2, mixed, np.array([6, 6, 6]))
        np.testing.assert_allclose(made.images[0, :, 0], expected, **CLOSE)
        assert made.t.tolist() == [498] and made.weights.tolist() == [0, 0.25, 1]

    def test_what_is_mixed(self, params, monkeypatch):
        """Every pair, weight and timestep: (1 - w) x_t + w x'_t; by default at half of the steps."""
        seen = []

        def record(params, key, x_t, *, start, indices, **_):
            seen.append((start, x_t, indices))
            return x_t

        monkeypatch.setattr(figures, "run_part", record)
        first, second = images_of(0), images_of(1)
        figures.interpolate(params, KEY, first, second, timesteps=[830, 166], weights=[0, 0.3], sampler=SAMPLER)
        figures.interpolate(params, KEY, first, second, weights=[1], sampler=SAMPLER)
        assert [start for start, _, _ in seen] == [0, 4, 3]
        levels = SAMPLER.table(params.config.schedule).levels[:, 0]
        for (start, x_t, indices), weights in zip(seen, ([0, 0.3], [0, 0.3], [1]), strict=True):
            assert indices.tolist() == [0, 2] * len(weights)
            signal, sigma = levels[start]
            for i, weight in enumerate(weights):
                for pair in range(2):
                    parts = [
                        signal * (2 * image[pair] - 1) + sigma * noise_of(index, 0)
                        for image, index in ((first, 2 * pair), (second, 2 * pair + 1))
                    ]
                    expected = (1 - weight) * parts[0] + weight * parts[1]
                    np.testing.assert_allclose(x_t[2 * i + pair], expected, atol=1e-6)

    def test_variance_exploding(self, monkeypatch):
        """x_t = x_0 + sigma eps, on data in [0, 1]."""
        params = small_params(schedule=EXPLODING)
        monkeypatch.setattr(figures, "run_part", lambda params, key, x_t, **_: x_t)
        sampler = samplers.EulerAncestral(num_steps=5)
        images = images_of(0, 1)
        table = table_of(sampler, params.config)
        last = float(table.t[-1])  # the least noise
        made = figures.interpolate(params, KEY, images, images, timesteps=[last], weights=[0], sampler=sampler)
        expected = np.clip(images[0] + last * noise_of(0, 0), 0, 1)
        np.testing.assert_allclose(made.images[0, 0, 0], expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"first": images_of(0, 1)}, r"`first` has shape \(1, 8, 8, 1\), `second` \(2, 8, 8, 1\): they are pairs"),
            ({"second": images_of(0) * 255}, "`second` has values from .*; images are in .0, 1.. Divide bytes by 255"),
            ({"first": images_of(0)[..., [0, 0, 0]]}, r"`first` has shape \(2, 8, 8, 3\); this network takes"),
            ({"weights": [0, 1.5]}, r"`weights` is \[0.0, 1.5\]; it must be a list of numbers from 0 to 1"),
            ({"weights": []}, r"`weights` is \[\]; it must be a list of numbers"),
            ({"timesteps": [9999]}, "`timesteps` is .9999.; they must be numbers from 0 to 830"),
            ({"sampler": samplers.UniPC(num_steps=6)}, "`sampler` is a multistep method"),
            ({"first_index": 2**31}, "`first_index` is 2147483648; images are numbered from 0"),
        ],
    )
    @pytest.mark.usefixtures("untyped")
    def test_bad_input(self, params, changes, message):
        given = {"first": images_of(0), "second": images_of(1), "sampler": SAMPLER} | changes
        with pytest.raises(ValueError, match=message):
            figures.interpolate(params, KEY, given.pop("first"), given.pop("second"), **given)


def test_quality_over_steps(params):
    """The metric sees the bytes of x_0_hat of every moment, of all images and no more, in their order."""
    seen, done = [], []
    metric = lambda features: seen.append(features) or len(seen)
    found = figures.quality_over_steps(
        *(params, KEY, 5),
        extractor=pixel_features,
        metric=metric,
        batch_size=3,
        num_frames=3,
        sampler=SAMPLER,
        watch=done.append,
    )
    paths = [ddpm_jax.sample_path(params, KEY, 3, num_frames=3, sampler=SAMPLER, first_index=i) for i in (0, 3)]
    assert found.values.tolist() == [1, 2, 3] and found.steps.tolist() == [1, 3, 6] and done == [3, 5]
    np.testing.assert_array_equal(found.t, paths[0].t)
    for moment, features in enumerate(seen):
        frames = np.concatenate([np.asarray(path.x_0_hat[moment]) for path in paths])[:5]
        expected = ddpm_jax.to_uint8(frames).reshape(5, -1) / 255
        np.testing.assert_allclose(features, expected, atol=1.01 / 255)  # a byte that rounds the other way


class TestBoundCurves:
    def test_the_curves(self):
        lines = figures.bound_curves(np.array([[4.0, 2.0, 0.0], [2.0, 2.0, 0.0]]))
        assert lines["mean of 2 images"] == [(0, 3), (1, 2)]  # 0 is not on a logarithmic axis
        assert lines["one standard error above"] == [(0, 4), (1, 2)]  # std 2^(1/2), of 2 images
        assert lines["one standard error below"] == [(0, 2), (1, 2)]
        assert list(figures.bound_curves(np.ones((1, 3)))) == ["mean of 1 image"]

    @pytest.mark.parametrize("terms", [np.ones(3), np.ones((0, 3)), np.full((2, 3), np.nan)])
    def test_bad_terms(self, terms):
        with pytest.raises(ValueError, match=r"`terms` has shape .* must be \[images, timesteps\] of finite numbers"):
            figures.bound_curves(terms)


def test_the_mixture_of_pixels_stands_below():
    first, second = np.zeros((1, 64, 64, 1), np.float32), np.ones((1, 64, 64, 1), np.float32)
    rendered = np.full((2, 3, 1, 64, 64, 1), 0.2)
    made = figures.Interpolations(np.array([5.0, 3.0]), np.array([0.0, 0.5, 1.0]), rendered)
    picture = pictures.interpolations(made, first, second)
    middle = picture[[-32 - 132, -32 - 66, -32], :, 0][:, -32 - 66 * 4 :: 66]
    expected = [[0, 51, 51, 51, 255], [0, 51, 51, 51, 255], [0, 0, 128, 255, 255]]
    np.testing.assert_array_equal(middle, expected)
