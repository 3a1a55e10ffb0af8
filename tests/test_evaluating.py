"""Evaluations end to end: numbers of the metrics, resumed ones, refusals, the likelihood."""

import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import small_params
from PIL import Image
from test_checkpoint import SCHEDULER, write_flat

import ddpm_jax
from ddpm_jax import evaluation, likelihood, pixels, samplers
from ddpm_jax.evaluation import evaluating, gathering, likelihoods, moments, pairs, scores
from ddpm_jax.evaluation.evaluating import evaluate
from ddpm_jax.evaluation.features import from_function
from ddpm_jax.evaluation.gathering import gather
from ddpm_jax.evaluation.report import read_report
from ddpm_jax.evaluation.subjects import Drawn
from ddpm_jax.images.draw_set import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*full rank from:UserWarning")
RANDOM = np.random.default_rng(0)
REAL = RANDOM.integers(0, 256, (40, 8, 8, 1), np.uint8)
FAKE = RANDOM.integers(0, 200, (30, 8, 8, 1), np.uint8)
DDIM = samplers.DDIM(num_steps=3)
SHORT = SCHEDULER | {"num_train_timesteps": 6, "beta_start": 0.01, "beta_end": 0.4}
with_logits = from_function(lambda images: (images.mean(axis=(1, 2)), images[:, 0, :4, 0] / 50), "with logits")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch, tmp_path):
    monkeypatch.setattr(gathering, "CHUNK", 16)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sets(tmp_path):
    """Real images and fakes, in files."""
    np.savez(tmp_path / "real.npz", images=REAL)
    np.savez(tmp_path / "fake.npz", images=FAKE)
    return str(tmp_path / "fake.npz"), str(tmp_path / "real.npz")


def folder_of(path, images):
    path.mkdir()
    for number, image in enumerate(images):
        pixels.picture(image).save(path / f"{number:02d}.png")
    return str(path)


def vectors(images):
    return images.reshape(len(images), -1).astype(np.float32) / 255


def drawn(path, count=5, **recipe):
    """A small model's set, which its folder tells."""
    write_flat(path, small_params(), SHORT)
    params = ddpm_jax.load(path)
    return Drawn(
        recipe=Recipe(**{"params": params, "sampler": DDIM, "seed": 2} | recipe),
        num_images=count,
        batch_size=4,
        origin={"source": str(path)},
    )


class TestNumbers:
    @pytest.mark.parametrize("name", ["fid", "kid", "precision_recall", "density_coverage", "energy_distance"])
    def test_are_those_of_the_metrics(self, sets, tmp_path, name):
        """And of real images in the place of the fakes: 20 of 40 against the other 20."""
        found = evaluate(*sets, tmp_path / "out", num_resamples=8, level=0.9)["results"]["metrics"]
        metric = getattr(evaluation, name)
        expected = evaluation.estimate(metric, vectors(REAL), vectors(FAKE), num_resamples=8, level=0.9)
        floor = evaluation.floor(metric, vectors(REAL), size=20, against=20)
        for part, estimate in expected.items():
            assert found[part] == {**estimate._asdict(), "real": floor[part], "num_real": 20, "num_against": 20}

    def test_of_few_fakes(self, tmp_path, sets):
        np.savez(tmp_path / "few.npz", images=FAKE[:6])
        found = evaluate(tmp_path / "few.npz", sets[1], tmp_path / "out", num_resamples=0)["results"]["metrics"]
        assert (found["kid"]["num_real"], found["kid"]["num_against"], found["kid"]["low"]) == (6, 34, None)
        assert found["kid"]["real"] == evaluation.floor(evaluation.kid, vectors(REAL), size=6, against=34)["kid"]

    def test_of_logits(self, sets, tmp_path):
        """The inception score needs no reference; that of the real images stands beside it."""
        found = evaluate(*sets, tmp_path / "out", features=with_logits, num_resamples=5)["results"]["metrics"]
        score = found["inception_score"]
        for images, name in ((FAKE, "value"), (REAL, "real")):
            logits = (images[:, 0, :4, 0] / 50).astype(np.float32)
            expected = evaluation.inception_score(logits).mean
            np.testing.assert_allclose(score[name], expected, rtol=1e-12)  # the order of sums in float64
        assert score["num_real"] == 40 and score["low"] < score["value"] < score["high"]

    def test_are_in_the_report(self, sets, tmp_path):
        report = evaluate(*sets, tmp_path / "out", num_resamples=0)
        assert read_report(tmp_path / "out") == read_report(tmp_path / "out/report.json") == report
        protocol, results = report["protocol"], report["results"]
        assert (protocol["num_images"], protocol["num_reference"], protocol["features"]) == (30, 40, "pixels")
        assert results["not_computed"] == {"inception_score": "pixels has no logits"}
        assert results["likelihood"] is None and report["settings"]["reference"] == sets[1]
        assert report["environment"]["versions"]["jax"] == jax.__version__

    def test_too_few_images(self, sets, tmp_path):
        np.savez(tmp_path / "few.npz", images=FAKE[:4])
        with pytest.warns(UserWarning, match="`images` has 4 images, but a covariance of 64 features has full rank"):
            report = evaluate(tmp_path / "few.npz", sets[1], tmp_path / "out", num_resamples=0)
        results = report["results"]
        assert results["not_computed"]["density_coverage"] == "images: 4, and this metric needs at least 6"
        assert "precision" in results["metrics"]
        assert [text.split()[0] for text in results["warnings"]] == ["`reference`", "`images`"]


class TestReferences:
    def test_of_statistics_allow_the_fid_alone(self, sets, tmp_path):
        real = gather(REAL, evaluation.extractor("pixels"))
        evaluation.write_statistics(tmp_path / "x.npz", real)
        results = evaluate(sets[0], tmp_path / "x.npz", tmp_path / "out", num_resamples=0)["results"]
        assert {*results["metrics"]} == {"fid"} and results["metrics"]["fid"]["real"] is None
        assert results["metrics"]["fid"]["value"] == evaluation.fid(real.statistics, vectors(FAKE))
        assert "statistics alone" in results["not_computed"]["kid"] and len(results["not_computed"]) == 5
        evaluation.write_statistics(tmp_path / "y.npz", real, keep_features=True)
        found = evaluate(sets[0], tmp_path / "y.npz", tmp_path / "kept", num_resamples=0)["results"]["metrics"]
        assert found["kid"]["value"] == evaluation.kid(vectors(REAL), vectors(FAKE))

    def test_of_another_protocol(self, sets, tmp_path):
        evaluation.write_statistics(tmp_path / "x.npz", gather(REAL, with_logits))
        message = "`reference` .*x.npz has features by 'with logits', and those of the images are made by 'pixels'"
        with pytest.raises(ValueError, match=message):
            evaluate(sets[0], tmp_path / "x.npz", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_of_other_programs(self, sets, tmp_path):
        whole = evaluation.Statistics.of(vectors(REAL))
        np.savez(tmp_path / "x.npz", mu=whole.mean, sigma=whole.covariance)
        with pytest.raises(ValueError, match="Say so by `protocol`"):
            evaluate(sets[0], tmp_path / "x.npz", tmp_path / "out", num_resamples=0)
        options = {"num_resamples": 0, "protocol": "pixels"}
        found = evaluate(sets[0], tmp_path / "x.npz", tmp_path / "out", **options)["results"]["metrics"]
        np.testing.assert_allclose(found["fid"]["value"], evaluation.fid(vectors(REAL), vectors(FAKE)), rtol=1e-6)
        with pytest.raises(ValueError, match="`protocol` is for statistics, and `reference` .*real.npz is none"):
            evaluate(*sets, tmp_path / "other", protocol="pixels")

    def test_grey_files_become_colour_for_colour_images(self, tmp_path):
        np.savez(tmp_path / "colour.npz", images=RANDOM.integers(0, 256, (30, 8, 8, 3), np.uint8))
        real = folder_of(tmp_path / "real", REAL[:10])
        report = evaluate(tmp_path / "colour.npz", real, tmp_path / "out", num_resamples=0)
        assert report["protocol"]["num_features"] == 192

    def test_of_another_size(self, tmp_path, sets):
        """A resolution brings both sides to it; without one the lengths differ, or with other features a warning."""
        large = RANDOM.integers(0, 256, (20, 12, 10, 1), np.uint8)
        real = folder_of(tmp_path / "real", large)
        with pytest.raises(ValueError, match="`real` has 120 features an image and `fake` 64"):
            evaluate(sets[0], real, tmp_path / "out", num_resamples=0)
        report = evaluate(sets[0], real, tmp_path / "smaller", resolution=4, num_resamples=0)
        assert report["protocol"]["sizes"] == report["protocol"]["sizes_of_reference"] == [[4, 4], [4, 4]]
        assert report["protocol"]["num_features"] == 16
        with pytest.warns(UserWarning, match="`reference` has images of 10 x 12 pixels and `images` of 8 x 8"):
            evaluate(sets[0], real, tmp_path / "mean", features=with_logits, num_resamples=0)

    def test_of_several_sizes(self, tmp_path, sets):
        real = Path(folder_of(tmp_path / "real", REAL[:9]))
        Image.new("L", (9, 9)).save(real / "09.png")
        with pytest.raises(ValueError, match=r"`reference` 0 to 9 of .* have \[64, 81\] features .*one `resolution`"):
            evaluate(sets[0], str(real), tmp_path / "out")


class TestBadInput:
    def test_corrupt_images(self, sets, tmp_path):
        folder = folder_of(tmp_path / "images", FAKE[:12])
        Path(folder, "03.png").write_bytes(b"broken")
        with pytest.raises(ValueError, match="`images` .*: 1 of 12 images cannot be read: .*03.png"):
            evaluate(folder, sets[1], tmp_path / "out")
        with pytest.raises(ValueError, match="`reference` .*: 1 of 12 images cannot be read: .*03.png"):
            evaluate(sets[0], folder, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        report = evaluate(folder, sets[1], tmp_path / "out", num_resamples=0, skip_broken=True)
        assert report["results"]["images"]["count"] == 11

    def test_nothing_there(self, sets, tmp_path):
        with pytest.raises(FileNotFoundError, match="`reference` nowhere: there is no such folder or file"):
            evaluate(sets[0], "nowhere", tmp_path / "out")

    def test_features_that_are_not_finite(self, sets, tmp_path):
        class Broken:
            name = "broken"

            def __call__(self, images):
                return evaluation.Features(np.where(images[:, 0, :, 0] == images.max(), np.nan, 0.0), None)

        with pytest.raises(ValueError, match="NaN or infinite features by 'broken', first image .* of .*real.npz"):
            evaluate(*sets, tmp_path / "out", features=Broken())
        assert not (tmp_path / "out/report.json").exists()

    def test_options(self, sets, tmp_path):
        refused = [
            ({"level": 95.0}, "`level` is 95.0"),
            ({"num_resamples": -1}, "`num_resamples` is -1"),
            ({"bits_per_dim": 3}, "`bits_per_dim` is 3, but `images` are images"),
            ({"flow": True}, "`flow` adds to `bits_per_dim`, which is 0"),
            ({"features": with_logits, "weights": "x"}, "`features` has its own"),
            ({"features": "pixel"}, "Did you mean `pixels`"),
        ]
        for options, message in refused:
            with pytest.raises(ValueError, match=message):
                evaluate(*sets, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    def test_a_folder_of_something_else(self, sets, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine.txt").write_text("mine")
        for force in (False, True):
            with pytest.raises(FileExistsError, match="holds mine.txt but no evaluation.json"):
                evaluate(*sets, tmp_path / "out", force=force)
        assert (tmp_path / "out/mine.txt").read_text() == "mine"


class TestResumed:
    STAGES = {
        "drawing": 4.5,
        "features of the reference": 16,
        "features of the images": 0,
        "fid": 0.5,
        "density_coverage": 1.0,
        "likelihood": 4,
    }

    def test_goes_on_where_it_ended(self, tmp_path, sets, monkeypatch):
        """Interrupted in every stage, one after another: what is done is not done again, and the numbers are equal."""
        subject = drawn(tmp_path / "model", 7)
        options = {"num_resamples": 4, "bits_per_dim": 6}
        whole = evaluate(subject, sets[1], tmp_path / "whole", **options)

        def run(stop_at=None, moment=None):
            seen = {}

            def watch(stage, done, total):
                seen.setdefault(stage, done)
                if stage == stop_at and done >= moment:
                    raise KeyboardInterrupt

            if stop_at is None:
                return evaluate(subject, sets[1], tmp_path / "out", **options, watch=watch), seen
            with pytest.raises(KeyboardInterrupt):
                evaluate(subject, sets[1], tmp_path / "out", **options, watch=watch)
            assert not (tmp_path / "out/report.json").exists()
            return None, seen

        of_runs = {stage: run(stage, moment)[1] for stage, moment in self.STAGES.items()}
        assert of_runs["features of the reference"]["drawing"] == 4  # a batch is written when it is whole
        assert of_runs["features of the images"]["features of the reference"] == 16
        assert {"fid", "kid"} <= of_runs["density_coverage"].keys()
        assert not {"fid", "kid", "precision_recall"} & of_runs["likelihood"].keys()
        first_images, bound_terms = [], likelihoods.bound_terms

        def noting(*arguments, first_index, **options):
            first_images.append(first_index)
            return bound_terms(*arguments, first_index=first_index, **options)

        monkeypatch.setattr(likelihoods, "bound_terms", noting)
        again, seen = run()
        assert first_images == [4]  # the first batch, of 4 images, was kept
        assert again["results"] == whole["results"]
        assert seen == {"drawing": 7, "features of the reference": 40, "features of the images": 7, "likelihood": 4}

    def test_is_refused_with_other_settings(self, sets, tmp_path):
        evaluate(*sets, tmp_path / "out", num_resamples=0)
        for options, words in [
            ({"num_resamples": 3}, "num_resamples 0 there, 3 here"),
            ({"resolution": 4}, "resolution None there, 4 here"),
            ({"features": with_logits}, "extractor 'pixels' there, 'with logits' here; features 'pixels' there, None"),
        ]:
            with pytest.raises(ValueError, match=f"`out` .*with other settings: {words}.*`force`"):
                evaluate(*sets, tmp_path / "out", **{"num_resamples": 0} | options)
        np.savez(sets[0], images=FAKE[::-1])
        with pytest.raises(ValueError, match="images_content '.*' there, '.*' here"):
            evaluate(*sets, tmp_path / "out", num_resamples=0)
        report = evaluate(*sets, tmp_path / "out", num_resamples=0, resolution=4, force=True)
        assert report["protocol"]["num_features"] == 16
        with pytest.raises(FileExistsError, match="holds this evaluation already"):
            evaluate(*sets, tmp_path / "out", num_resamples=0, resolution=4)

    def test_with_another_model(self, sets, tmp_path):
        evaluate(drawn(tmp_path / "model"), sets[1], tmp_path / "out", num_resamples=0)
        with pytest.raises(ValueError, match="images {.*'seed': 2.* there, {.*'seed': 3.* here"):
            evaluate(drawn(tmp_path / "model", seed=3), sets[1], tmp_path / "out", num_resamples=0)

    def test_one_job_at_a_time(self, sets, tmp_path):
        def watch(*_):
            with pytest.raises(BlockingIOError, match="evaluation .* is in use by another job"):
                evaluate(*sets, tmp_path / "out", num_resamples=0)

        evaluate(*sets, tmp_path / "out", num_resamples=0, watch=watch)

    @pytest.mark.slow
    def test_after_a_kill(self, tmp_path):
        """The process ends at once, at several moments; the last one's report equals that of an undisturbed one."""
        program = """
import os, signal, sys
from ddpm_jax.evaluation import evaluating
moment, told = int(sys.argv[1]), 0
def watch(*_):
    global told
    told += 1
    if told == moment:
        os.kill(os.getpid(), signal.SIGKILL)
evaluating.evaluate("digits", "digits", sys.argv[2], num_resamples=3, resolution=8, watch=watch)
"""
        run = lambda moment, out: subprocess.run([sys.executable, "-c", program, str(moment), str(out)]).returncode
        for moment in (2, 4, 7, 9):
            assert run(moment, tmp_path / "out") == -signal.SIGKILL
        assert run(0, tmp_path / "out") == run(0, tmp_path / "whole") == 0
        one, other = (read_report(tmp_path / name)["results"] for name in ("out", "whole"))
        assert one == other


class TestModels:
    def test_draw_what_sample_draws(self, sets, tmp_path):
        subject = drawn(tmp_path / "model")
        report = evaluate(subject, sets[1], tmp_path / "out", num_resamples=0)
        images = ddpm_jax.sample(subject.recipe.params, jax.random.key(2), 5, sampler=DDIM)
        with Image.open(tmp_path / "out/samples/00004.png") as image:
            there = np.asarray(image).astype(int)
        assert np.abs(there - ddpm_jax.to_uint8(images)[4, ..., 0]).max() <= 1  # rounding of another batch size
        of_drawn = report["protocol"]["drawn"]
        assert (of_drawn["sampler"], of_drawn["seed"], of_drawn["evaluations"]) == ("DDIM(num_steps=3)", 2, 3)
        assert report["inputs"]["model_weights"] == subject.recipe.settings()["weights"]
        assert report["protocol"]["num_images"] == 5 and report["protocol"]["resolution"] == 8

    def test_likelihood(self, sets, tmp_path):
        """That of `bound_terms` on images evenly spaced among 40, whatever the batches: 6 of them in batches of 4."""
        subject = drawn(tmp_path / "model")
        report = evaluate(subject, sets[1], tmp_path / "out", num_resamples=0, bits_per_dim=6)
        found = report["results"]["likelihood"]
        chosen = pixels.data_from_bytes(REAL[[0, 8, 16, 23, 31, 39]], (-1, 1))
        bound = likelihood.bound_terms(subject.recipe.params, jax.random.key(2), chosen)
        expected = {
            "bits_per_dim": bound.total,
            "prior": bound.prior,
            "distortion": bound.terms[:, 0],
            "rate": bound.terms[:, 1:].sum(axis=1),
        }
        for name, values in expected.items():
            values = np.asarray(values, np.float64)
            # another batch size in float32
            np.testing.assert_allclose(found[name]["value"], values.mean(), rtol=1e-5)
            np.testing.assert_allclose(found[name]["standard_error"], values.std(ddof=1) / 6**0.5, rtol=1e-3)
        parts = sum(found[name]["value"] for name in ("prior", "rate", "distortion"))
        np.testing.assert_allclose(found["bits_per_dim"]["value"], parts, rtol=1e-6)  # float32 sums
        assert found["count"] == 6 and len(found["terms"]) == 6

    def test_likelihood_that_cannot_be(self, sets, tmp_path):
        subject = drawn(tmp_path / "model")
        with pytest.raises(ValueError, match="`bits_per_dim` is 41, but `reference` has 40 images"):
            evaluate(subject, sets[1], tmp_path / "out", bits_per_dim=41)
        np.savez(tmp_path / "colour.npz", images=np.zeros((9, 8, 8, 3), np.uint8))
        with pytest.raises(ValueError, match="`reference` has 3 channels, and the model 1"):
            evaluate(subject, tmp_path / "colour.npz", tmp_path / "out", bits_per_dim=4)
        evaluation.write_statistics(tmp_path / "x.npz", gather(REAL, evaluation.extractor("pixels")))
        with pytest.raises(ValueError, match="`reference` holds statistics; likelihoods are those of images"):
            evaluate(subject, tmp_path / "x.npz", tmp_path / "out", bits_per_dim=4)

    @pytest.mark.slow
    def test_likelihood_by_the_flow(self, sets, tmp_path):
        subject = drawn(tmp_path / "model")
        found = evaluate(subject, sets[1], tmp_path / "out", num_resamples=0, bits_per_dim=3, flow=True)
        chosen = pixels.data_from_bytes(REAL[[0, 20, 39]], (-1, 1))
        flow = likelihood.flow_likelihood(subject.recipe.params, jax.random.key(2), chosen)
        value = found["results"]["likelihood"]["flow"]["value"]
        np.testing.assert_allclose(value, np.mean(flow.bits_per_dim), rtol=1e-4)  # 3 fill up a batch of 3


class TestMemory:
    def test_grows_by_the_features_alone(self, tmp_path, monkeypatch):
        """600 more images have 0.6 MB of 256 features. Both sides lie on disk; to set real images against real ones,
        their features are copied once."""
        monkeypatch.setattr(gathering, "CHUNK", 64)
        monkeypatch.setattr(pairs, "TILE", 256)
        monkeypatch.setattr(moments, "BLOCK", 64)
        monkeypatch.setattr(scores, "METRICS", {"kid": evaluation.kid})
        wide = from_function(lambda images: np.tile(images.reshape(len(images), -1), 64), "wide")
        peaks = []
        for count in (512, 1112):
            images = RANDOM.integers(0, 256, (count, 2, 2, 1), np.uint8)
            np.save(tmp_path / f"{count}.npy", images)
            tracemalloc.start()
            path = str(tmp_path / f"{count}.npy")
            evaluating.evaluate(path, path, tmp_path / f"out {count}", features=wide, num_resamples=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] - peaks[0] < 1.5 * 600 * 256 * 4
