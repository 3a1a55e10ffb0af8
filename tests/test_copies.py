"""Copies of training images: planted ones are found, held-out images are flagged at the stated rate, and no more."""

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from scipy import stats

from ddpm_jax.evaluation import copies
from ddpm_jax.evaluation.copies import CopyScores, copy_scores, memorisation, planted_copies
from ddpm_jax.evaluation.features import from_function
from ddpm_jax.images.source import centred, open_source

PRODUCE = SHARED / "data" / "produce-64"


def smooth_images(count, seed, side=16):
    """Blurred colour noise: images that have neighbours, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), Image.BICUBIC)) for image in coarse])


def as_scores(scores, distances=None):
    scores = np.asarray(scores, np.float64)
    distances = scores if distances is None else np.asarray(distances, np.float64)
    return CopyScores(scores, np.zeros(len(scores), int), distances)


@pytest.fixture(scope="module")
def synthetic():
    """Training images, and the scores of 199 held-out ones."""
    training = smooth_images(150, 0)
    return training, copy_scores(smooth_images(199, 1), training)


class TestScores:
    def test_definition(self):
        """The distance to the nearest over the mean of the k nearest, the least over all mirrored and shifted crops."""
        training, images = smooth_images(20, 2, side=8), smooth_images(4, 3, side=8)
        found = copy_scores(images, training, k=5, shift=1)
        for i, image in enumerate(images.astype(np.float64)):
            turned = [image, image[:, ::-1]]
            crops = [each[1 + y : 7 + y, 1 + x : 7 + x] for each in turned for y in (-1, 0, 1) for x in (-1, 0, 1)]
            away = [min(np.linalg.norm(other[1:7, 1:7] - crop) for crop in crops) for other in training]
            np.testing.assert_allclose(found.distances[i], min(away), rtol=1e-12)
            np.testing.assert_allclose(found.scores[i], min(away) / np.mean(np.sort(away)[:5]), rtol=1e-12)
            assert found.nearest[i] == np.argmin(away)

    @pytest.mark.parametrize("shift", [1, 2])
    def test_copies_within_the_shift_are_exact(self, shift):
        training = smooth_images(60, 0)
        moved = np.roll(training[5:10, :, ::-1], (shift, -shift), axis=(1, 2))
        found = copy_scores(moved, training, shift=shift)
        assert not found.scores.any() and found.nearest.tolist() == [5, 6, 7, 8, 9]
        assert copy_scores(moved, training, shift=shift - 1).scores.min() > 0

    def test_features(self):
        """Of the crops, by any extractor."""
        training, images = smooth_images(12, 0), smooth_images(3, 1)
        mean = from_function(lambda images: images.mean((1, 2)), "mean colour")
        found = copy_scores(images, training, k=3, shift=0, extractor=mean)
        away = np.linalg.norm(images.mean((1, 2))[:, None] - training.mean((1, 2)), axis=2)
        np.testing.assert_allclose(found.distances, away.min(1), rtol=1e-4)  # features are float32
        np.testing.assert_array_equal(found.nearest, away.argmin(1))

    def test_a_training_set_of_equal_images(self):
        """The mean distance is 0 then, which nothing is divided by."""
        assert copy_scores(np.zeros((2, 8, 8, 1), np.uint8), np.zeros((60, 8, 8, 1), np.uint8)).scores.tolist() == [
            0,
            0,
        ]

    @pytest.mark.parametrize(
        "changes, message",
        [
            (
                {"images": np.zeros((2, 8, 8, 1), np.float32)},
                r"`images` is an array float32 \[2, 8, 8, 1\]; .*`to_uint8`",
            ),
            ({"images": np.zeros((0, 8, 8, 1), np.uint8)}, r"`images` is an array uint8 \[0, 8, 8, 1\]"),
            (
                {"training": np.zeros((60, 8, 6, 1), np.uint8)},
                r"`images` are \[8, 8, 1\], `training` \[8, 6, 1\]: bring",
            ),
            ({"k": 60}, "`k` must be an integer from 2 to 59, .* not 60"),
            ({"k": 1}, "`k` must be an integer from 2 to 59, .* not 1"),
            ({"shift": 4}, "`shift` must be from 0 to 3, .*not 4"),
            ({"shift": -1}, "`shift` must be from 0 to 3, .*not -1"),
        ],
    )
    def test_bad_input(self, changes, message):
        given = {"images": np.zeros((2, 8, 8, 1), np.uint8), "training": np.zeros((60, 8, 8, 1), np.uint8)} | changes
        with pytest.raises(ValueError, match=message):
            copy_scores(given.pop("images"), given.pop("training"), **given)


class TestReport:
    @pytest.mark.parametrize("level, held_out", [(0.05, 99), (0.1, 57)])
    def test_the_rate_of_false_alarms(self, level, held_out):
        """Of scores of one distribution, m / (h + 1) are flagged on average, m being floor(level (h + 1))."""
        generator, m = np.random.default_rng(0), int(level * (held_out + 1) + 1e-9)
        draw = lambda count: as_scores(generator.exponential(size=count))
        shares = [memorisation(draw(200), draw(held_out), level=level).share for _ in range(400)]
        rate = m / (held_out + 1)
        error = np.std(shares) / np.sqrt(len(shares))
        assert rate <= level and abs(np.mean(shares) - rate) < 4 * error

    @pytest.mark.parametrize("count", [0, 1, 3, 10])
    def test_the_p_value(self, count):
        """The negative hypergeometric distribution, by scipy."""
        found = as_scores([0.1] * count + [0.9] * (10 - count))
        report = memorisation(found, as_scores(np.linspace(0.2, 0.8, 40)), level=0.1)  # m = 4
        expected = stats.nhypergeom.pmf(np.arange(count, 11), 50, 10, 4).sum()
        np.testing.assert_allclose(report.p_value, expected, rtol=1e-9)
        assert report.share == count / 10 and len(report.flagged) == count

    def test_closer(self):
        generator = np.random.default_rng(0)
        one, other = generator.integers(0, 20, 30), generator.integers(5, 25, 40)
        report = memorisation(as_scores(np.ones(30), one), as_scores(np.ones(40), other), level=0.5)
        above = stats.mannwhitneyu(one, other).statistic  # counts pairs in which the first is larger, ties half
        np.testing.assert_allclose(report.closer, 1 - above / 1200, rtol=1e-12)

    def test_the_lowest_score_comes_first(self):
        report = memorisation(as_scores([0.5, 0.1, 0.9, 0.3]), as_scores([0.6] * 9), level=0.1)
        assert report.threshold == 0.6 and report.flagged == (1, 3, 0)
        assert memorisation(as_scores([0.6]), as_scores([0.6] * 9), level=0.1).flagged == ()  # as low as it, not below

    @pytest.mark.parametrize(
        "level, message",
        [
            (0.0, "`level` must be a rate between 0 and 1, not 0.0"),
            (1.0, "`level` must be a rate"),
            (0.01, "`held_out` has 9 images, by which a rate of 0.01 cannot be told: give at least 99 of them, or a "),
        ],
    )
    def test_bad_levels(self, level, message):
        with pytest.raises(ValueError, match=message):
            memorisation(as_scores([0.5]), as_scores([0.5] * 9), level=level)

    def test_no_images(self):
        with pytest.raises(ValueError, match="`found` holds no scores"):
            memorisation(as_scores([]), as_scores([0.5] * 9), level=0.5)


class TestPlanted:
    """Synthetic images, of which every planted copy is found."""

    @pytest.mark.parametrize("kind", ["exact", "mirrored", "shifted", "jpeg", "resampled"])
    def test_copies_are_found(self, synthetic, kind):
        training, held_out = synthetic
        chosen = np.arange(0, 150, 10)
        found = copy_scores(planted_copies(training[chosen])[kind], training)
        report = memorisation(found, held_out, level=0.01)
        assert report.share == 1 and report.p_value < 1e-6 and report.closer > 0.99
        np.testing.assert_array_equal(found.nearest, chosen)

    def test_other_images_are_not(self, synthetic):
        training, held_out = synthetic
        report = memorisation(copy_scores(smooth_images(199, 4), training), held_out, level=0.05)
        assert report.p_value > 0.001 and abs(report.closer - 0.5) < 0.12  # 4 standard errors, 0.29 sqrt(2 / 199)

    def test_what_is_planted(self):
        images = smooth_images(2, 0)
        planted = planted_copies(images)
        np.testing.assert_array_equal(planted["exact"], images)
        np.testing.assert_array_equal(planted["mirrored"], images[:, :, ::-1])
        np.testing.assert_array_equal(planted["shifted"][:, 1:, 1:], images[:, :-1, :-1])
        for name in ("jpeg", "resampled"):
            away = np.abs(planted[name].astype(int) - images).mean()
            assert planted[name].shape == images.shape and 0 < away < 12, (name, away)
        assert planted_copies(images[..., :1])["jpeg"].shape == (2, 16, 16, 1)


@pytest.mark.slow
@pytest.mark.skipif(not PRODUCE.is_dir(), reason="needs shared/data/produce-64")
def test_photographs():
    """At 32 pixels and a rate of 1 in 100, all planted copies of 100 photographs are found: a power above 0.95 with
    confidence 0.99, for each kind of copy. Of held-out photographs no more are flagged than the rate allows.
    """
    training, held_out = (centred(open_source(str(PRODUCE / name)), 32, 10_000)[0] for name in ("train", "test"))
    scores = copy_scores(held_out, training)
    chosen = np.random.default_rng(0).choice(len(training), 100, replace=False)
    for kind, planted in planted_copies(training[chosen]).items():
        found = copy_scores(planted, training)
        assert memorisation(found, scores, level=0.01).share == 1, kind
        assert np.mean(found.nearest == chosen) > 0.98  # some photographs were taken twice
    shuffled = np.random.default_rng(1).permutation(len(held_out))
    part = lambda numbers: CopyScores(*(array[numbers] for array in scores))
    for level in (0.01, 0.05):
        for one, other in (np.split(shuffled, 2), np.split(shuffled, 2)[::-1]):
            report = memorisation(part(one), part(other), level=level)
            assert report.p_value > 0.001, (level, report.share)  # the least of 4 uniform numbers, once in 250


def test_a_copy_of_an_image_that_has_a_twin():
    """Of a training image with a twin, the ratio to the second nearest would miss a copy; the mean of 50 does not."""
    training = smooth_images(100, 0)
    training[1] = training[0]
    found = copy_scores(planted_copies(training[:1])["jpeg"], training)
    assert found.scores[0] < 0.5


def test_level_and_count():
    assert [copies.check_level(count, 0.01) for count in (99, 198, 199, 878)] == [1, 1, 2, 8]
