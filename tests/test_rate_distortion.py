"""Progressive coding: identities of the curve, a model whose curve is known, and image files taken apart."""

import json

import jax
import numpy as np
import pytest
from conftest import small_params
from known_models import ExactMixture, Mixture, even_log_snr
from PIL import Image

import ddpm_jax
from ddpm_jax import compression, likelihood, plotting
from ddpm_jax.compression import image_codecs
from ddpm_jax.config import ScheduleConfig

KEY = jax.random.key(2)
SHORT = ScheduleConfig(num_train_timesteps=6, beta_start=0.01, beta_end=0.4)


def pictures(count=3, side=8, channels=1):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels)).astype(np.uint8)


@pytest.fixture(scope="module")
def curve():
    return compression.rate_distortion(small_params(schedule=SHORT), KEY, pictures(), batch_size=2)


def test_the_curve_is_the_bound_in_the_papers_order(curve):
    """Table 4 by hand: rate after n steps is L_T and the L_t of the n - 1 first steps."""
    x_0 = (pictures() / 127.5 - 1).astype(np.float32)
    parts = [
        likelihood.bound_terms(small_params(schedule=SHORT), KEY, x_0[start : start + 2], first_index=start)
        for start in (0, 1)
    ]
    prior, terms, mse = (
        np.concatenate([np.asarray(getattr(parts[0], name)), np.asarray(getattr(parts[1], name))[1:]]).astype(float)
        for name in ("prior", "terms", "mse")
    )
    assert curve.steps.tolist() == [1, 2, 3, 4, 5, 6]
    for row in curve.at_steps(range(1, 7)):
        steps = row["steps"]
        rate = prior + terms[:, 6 - steps + 1 :].sum(1)
        rmse = np.sqrt(mse[:, 6 - steps]) * 127.5
        assert row["rate"] == pytest.approx(rate.mean(), rel=1e-5)
        assert row["rate_error"] == pytest.approx(rate.std(ddof=1) / np.sqrt(3), rel=1e-4)
        assert row["rmse"] == pytest.approx(rmse.mean(), rel=1e-5)
        assert row["rmse_error"] == pytest.approx(rmse.std(ddof=1) / np.sqrt(3), rel=1e-4)
        assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / (rmse**2).mean()), rel=1e-5)
    assert curve.distortion.mean == pytest.approx(terms[:, 0].mean(), rel=1e-5)


def test_rate_and_distortion_are_the_whole(curve):
    assert curve.rate.mean[-1] + curve.distortion.mean == pytest.approx(curve.total.mean, rel=1e-6)
    assert (np.diff(curve.rate.mean) > 0).all()
    assert curve.rmse_at(curve.rate.mean[2]) == pytest.approx(curve.rmse.mean[2])
    assert curve.rmse_at(curve.total.mean) == 0.0
    middle = (curve.rate.mean[1] + curve.rate.mean[2]) / 2
    assert curve.rmse_at(middle) == pytest.approx((curve.rmse.mean[1] + curve.rmse.mean[2]) / 2)


def test_beside_other_codecs_at_equal_bits(curve):
    bits = [float(curve.rate.mean[place]) for place in (1, 4)]
    point = compression.CodecPoint("jpeg", 10, bits[1], bits[0], 20.0, 410.0, 3)
    (row,) = curve.beside([point])
    assert row["model_rmse"] == pytest.approx(curve.rmse.mean[4])
    assert row["model_rmse_at_payload"] == pytest.approx(curve.rmse.mean[1])
    assert (row["codec"], row["quality"], row["rmse"]) == ("jpeg", 10, 20.0)


def test_parts_merge_into_the_whole(curve):
    """As a stopped evaluation that goes on, by way of JSON."""
    params = small_params(schedule=SHORT)
    first = compression.rate_distortion(params, KEY, pictures()[:2], batch_size=2)
    first = compression.RateDistortion.from_json(json.loads(json.dumps(first.as_json())))
    seen = []
    rest = compression.rate_distortion(
        *(params, KEY, pictures()[2:]), batch_size=2, first_index=2, on_batch=lambda done, part: seen.append(done)
    )
    assert seen == [1]
    whole = first.merged(rest)
    assert whole.total.count == 3
    for mine, expected in zip(whole[1:], curve[1:], strict=True):
        np.testing.assert_allclose(mine.mean, expected.mean, rtol=1e-6)
        np.testing.assert_allclose(mine.standard_error, expected.standard_error, rtol=1e-4)
    assert np.isnan(rest.total.standard_error)  # of one image
    with pytest.raises(ValueError, match="timesteps"):
        whole.merged(rest._replace(t=np.arange(5)))


@pytest.mark.slow
def test_a_known_curve(known_network):
    """For the exact network of a mixture, rate and error after every step are those of quadrature."""
    model = ExactMixture(even_log_snr(40), Mixture())
    params = known_network(model, model.schedule, sample_size=64)
    images = np.round((model.draw((8, 64, 64, 1)) + 1) * 127.5).astype(np.uint8)
    found = compression.rate_distortion(params, KEY, images, clip=None, batch_size=8)
    mse = 127.5**2 * np.array([model.mean_square_error(t) for t in found.t])
    # 32,768 values, as in test_likelihood: 2 % a step, sums 1 %; the last steps are next to the levels' own width
    np.testing.assert_allclose(found.mse.mean, mse, rtol=0.03)
    rate = np.append(0, np.cumsum(model.terms()[::-1]))
    np.testing.assert_allclose(found.rate.mean, rate, rtol=0.01, atol=0.002)


def test_decoding_shows_what_was_sent(known_network, tmp_path):
    """Along one path x_t has the same law as when it is drawn anew: the expected terms are those of quadrature."""
    model = ExactMixture(even_log_snr(50), Mixture())
    params, x_0 = known_network(model, model.schedule, sample_size=32), model.draw((32, 32, 32, 1))
    images, knobs = np.round((x_0 + 1) * 127.5).astype(np.uint8), {"timesteps": (49, 20, 0), "clip": 1.0}
    seen = compression.decode_progressively(params, KEY, images, **knobs)
    sent = likelihood.transmit(params, KEY, x_0, **knobs)
    terms = np.asarray(sent.bound.terms, np.float64)
    # 32,768 values, whose mean square error is known to 1 % and more; x_0 beyond 1 has a chance of 1e-4
    np.testing.assert_allclose(terms.mean(0)[1:], model.terms(), rtol=0.06)
    assert seen.x_0_hat.shape == (3, 32, 32, 32, 1) and seen.t.tolist() == [49, 20, 0]
    np.testing.assert_allclose(seen.rate[1], np.asarray(sent.bound.prior) + terms[:, 21:].sum(1), rtol=1e-5)
    error = np.sqrt(((255 * np.asarray(seen.x_0_hat) - images) ** 2).mean((2, 3, 4)))
    np.testing.assert_allclose(seen.rmse, error, rtol=1e-4)
    assert seen.strip().shape[-1] == 1
    plotting.gif(seen.x_0_hat, tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as picture:
        assert picture.n_frames == 3


class TestCodecs:
    def test_files_are_those_of_pillow(self, tmp_path):
        """Bits, error and payload, from files on disk."""
        ramp = np.add.outer(np.arange(32), np.arange(32))[..., None] * np.array([1, 2, 3])
        image = (ramp % 256).astype(np.uint8)[None]
        for codec, name, options in (
            ("jpeg", "x.jpg", {"quality": 50, "optimize": True}),
            ("webp", "x.webp", {"quality": 50, "method": 6}),
        ):
            Image.fromarray(image[0]).save(tmp_path / name, **options)
            decoded = np.asarray(Image.open(tmp_path / name).convert("RGB"), np.float64)
            (point,) = compression.codec_curve(image, codec, [50])
            assert point.bits_per_dim == pytest.approx(8 * (tmp_path / name).stat().st_size / 3072)
            assert point.rmse == pytest.approx(np.sqrt(((decoded - image[0]) ** 2).mean()))
            assert 0 < point.payload_bits_per_dim < point.bits_per_dim

    def test_payload_of_a_jpeg_decodes(self):
        """The bytes before the payload and the two after it are the headers and the end marker."""
        file = image_codecs._file(pictures(1, 32, 3)[0], "jpeg", {"quality": 30})
        size = image_codecs.payload(file)
        assert file[-2:] == b"\xff\xd9"
        header = file[: len(file) - 2 - size]
        assert header.rfind(b"\xff\xda") == len(header) - 14  # the scan's header of three components has 12 bytes

    def test_lossless_ones_lose_nothing(self):
        for codec in ("png", "webp-lossless"):
            (point,) = compression.codec_curve(pictures(2, 16, 3), codec)
            assert point.rmse == 0 and point.quality is None and point.num_images == 2

    def test_grey(self):
        for codec in image_codecs.CODECS:
            assert all(point.bits_per_dim > 0 for point in compression.codec_curve(pictures(1, 16), codec, [10, 90]))

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"codec": "jpg"}, "`codec` must be one of"),
            ({"qualities": [0]}, "`qualities` must be numbers from 1 to 100"),
            ({"qualities": []}, "`qualities` must be numbers"),
            ({"images": pictures(1, 8, 4)}, "4 channels"),
            ({"images": pictures() / 255}, "it must be uint8"),
        ],
    )
    def test_bad_input(self, change, message, untyped):
        with pytest.raises(ValueError, match=message):
            compression.codec_curve(**({"images": pictures(), "codec": "jpeg"} | change))

    def test_other_files_have_no_payload(self):
        with pytest.raises(ValueError, match="no PNG, JPEG or WebP"):
            image_codecs.payload(b"GIF89a..")


def test_draws_figure_5(curve, tmp_path):
    points = compression.codec_curve(pictures(1, 16, 3), "webp", [1, 50]) + compression.codec_curve(pictures(), "png")
    path = compression.draw_curves(curve, tmp_path / "curve.png", points)
    with Image.open(path) as picture:
        assert picture.size == (1500, 450)


def test_bad_input(curve):
    params = small_params(schedule=SHORT)
    with pytest.raises(ValueError, match="`steps` must be numbers from 1 to 6"):
        curve.at_steps([0])
    with pytest.raises(ValueError, match="it must be uint8"):
        compression.rate_distortion(params, KEY, pictures().astype(np.float32))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        compression.rate_distortion(params, KEY, pictures(), batch_size=0)
    with pytest.raises(ValueError, match="this network takes"):
        compression.rate_distortion(params, KEY, pictures(channels=3))


def test_is_imported_on_first_use():
    assert ddpm_jax.compression is compression
