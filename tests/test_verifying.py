"""Reports: repeated from their record alone, changes found, and the page that shows them."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
import torch_peers
from conftest import small_params
from test_checkpoint import write_flat
from test_evaluating import FAKE, REAL, SHORT, drawn, folder_of, with_logits

import ddpm_jax
from ddpm_jax import evaluation, samplers
from ddpm_jax.cli import main
from ddpm_jax.evaluation import inception_weights, page, report
from ddpm_jax.evaluation.evaluating import evaluate
from ddpm_jax.evaluation.report import read_report, write_report
from ddpm_jax.evaluation.subjects import Drawn, drawn_from
from ddpm_jax.evaluation.verifying import verify
from ddpm_jax.images.draw_set import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*full rank from:UserWarning")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """An evaluation of a folder against a folder, which no test changes."""
    place = tmp_path_factory.mktemp("once")
    images, reference = folder_of(place / "images", FAKE[:20]), folder_of(place / "real", REAL[:20])
    evaluate(images, reference, place / "out", num_resamples=3)
    return place


@pytest.fixture
def evaluated(once, tmp_path):
    """Its report, which tests may change; images and reference lie elsewhere."""
    (tmp_path / "out").mkdir()
    shutil.copy(once / "out/report.json", tmp_path / "out")
    return tmp_path / "out"


def changed(path, *places, value):
    """Write a value into a report."""
    record = json.loads(path.read_text())
    inner = record
    for place in places[:-1]:
        inner = inner[place]
    assert inner[places[-1]] != value
    inner[places[-1]] = value
    path.write_text(json.dumps(record))


class TestVerified:
    def test_in_a_new_process(self, once, evaluated):
        """From another working directory, to the last digit; nothing remains."""
        program = [sys.executable, "-m", "ddpm_jax", "evaluate", "--verify", str(evaluated / "report.json")]
        result = subprocess.run(program, capture_output=True, text=True, check=False, cwd=once)
        assert result.returncode == 0, result.stderr
        assert "report.json is reproduced: " in result.stdout and "Differs" not in result.stdout
        assert [path.name for path in evaluated.iterdir()] == ["report.json"]

    def test_changed_results_are_found(self, evaluated):
        """Also the least change of a number."""
        high = read_report(evaluated)["results"]["metrics"]["recall"]["high"]
        changes = {
            ("results", "metrics", "fid", "value"): 1.5,
            ("results", "metrics", "kid", "low"): None,
            ("results", "metrics", "recall", "high"): math.nextafter(high, 2),
            ("results", "images", "features"): "00",
            ("results", "warnings", 0): "nothing",
            ("protocol", "num_images"): 50000,
        }
        for places, value in changes.items():
            changed(evaluated / "report.json", *places, value=value)
        found = verify(evaluated)
        assert found.repeated
        names = {" ".join(map(str, places)).removeprefix("results ") for places in changes}
        assert {text.partition(" there")[0].rpartition(" ")[0] for text in found.differences} == names

    def test_a_changed_image_is_found_before_all_else(self, tmp_path):
        """Also where its file has the same name and as many bytes."""
        real = folder_of(tmp_path / "real", REAL[:9])
        evaluate(real, real, "out", num_resamples=0)
        path = Path("real/05.png")
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
        found = verify("out", watch=lambda *_: pytest.fail("nothing is repeated"))
        assert not found.repeated
        assert [text.split()[0] for text in found.differences] == ["images_content", "reference_content"]
        with pytest.raises(SystemExit) as error:
            main(["evaluate", "--verify", "out"])
        assert error.value.code == 1

    def test_changed_weights_are_found(self, tmp_path, capsys):
        np.savez("real.npz", images=REAL)
        evaluate(drawn(tmp_path / "model"), "real.npz", tmp_path / "out", num_resamples=0)
        assert verify(tmp_path / "out").differences == ()
        weights = small_params().weights
        leaf = jax.tree.leaves(weights)[0]
        other = jax.tree.map(lambda x: x + np.float32(1e-3) if x is leaf else x, weights)
        write_flat(tmp_path / "model", small_params().replace(weights=other), SHORT)
        with pytest.raises(SystemExit):
            main(["evaluate", "--verify", "out/report.json"])
        said = capsys.readouterr()
        assert "Differs: model_weights " in said.out
        assert "is not reproduced: 1 differences in inputs, so that it was not repeated" in said.err

    def test_changed_settings_are_found(self, evaluated):
        """Other versions are told too, but are no difference."""
        changed(evaluated / "report.json", "settings", "level", value=0.5)
        changed(evaluated / "report.json", "environment", "versions", "numpy", value="1.0")
        found = verify(evaluated)
        names = {"fid", "kid", "precision", "recall", "density", "coverage", "energy_distance"}
        assert {text.split()[1] for text in found.differences} <= names and found.differences
        assert all(text.split()[2] in ("low", "high") for text in found.differences)
        assert found.environment == (f"versions numpy '1.0' there, {np.__version__!r} here",)

    def test_digits_beside_a_folder_of_that_name(self, tmp_path):
        folder_of(tmp_path / "digits", REAL[:4])
        evaluate("digits", "digits", "out", features=with_logits, num_resamples=0)
        assert verify("out", extractor=with_logits).differences == ()

    def test_what_cannot_be_repeated(self, evaluated, tmp_path):
        np.savez("real.npz", images=REAL)
        evaluate("real.npz", "real.npz", "mine", features=with_logits, num_resamples=0)
        with pytest.raises(ValueError, match="made by a function, of which it holds only the name.*`extractor`"):
            verify("mine")
        assert verify("mine", extractor=with_logits).differences == ()
        with pytest.raises(ValueError, match="`extractor` is given, but the report names its own, 'pixels'"):
            verify(evaluated, extractor=with_logits)
        subject = drawn(tmp_path / "model")
        evaluate(dataclasses.replace(subject, origin={}), "real.npz", "memory", num_resamples=0)
        with pytest.raises(ValueError, match="The weights of this evaluation were in memory only"):
            verify("memory")
        changed(Path("mine/report.json"), "settings", "features", value="inception-2048/none")
        with pytest.raises(ValueError, match="There is no extractor 'inception-2048/none'"):
            verify("mine")

    def test_what_is_no_report(self, evaluated, tmp_path):
        path = evaluated / "report.json"
        record = json.loads(path.read_text())
        for broken, message in [
            ("{", "is no JSON file"),
            (json.dumps(record | {"format_version": 2}), "has the format 2; this version reads 1"),
            (json.dumps({name: record[name] for name in record if name != "inputs"}), "lacks inputs"),
            (json.dumps(record | {"settings": record["settings"] | {"x": 1}}), "are not those that `evaluate` writes"),
        ]:
            path.write_text(broken)
            with pytest.raises(ValueError, match=message):
                verify(path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match="There is no file .*out/report.json"):
            verify(tmp_path / "out")


class TestRecords:
    @pytest.mark.parametrize(
        "sampler",
        [
            *(cls() for name, cls in samplers.SAMPLERS.items() if not name.endswith("-ve")),  # another schedule
            samplers.DDIM(timesteps=(900, 500.5, 0), clip=None, eta=0.25),
            samplers.Heun(s_churn=40.0, s_tmax=5.0, num_steps=7),
            samplers.DPMSolverPP(lambda_min_clipped=-5.1, timestep_spacing="trailing"),
            samplers.UniPC(disable_corrector=(0, 1)),
        ],
        ids=str,
    )
    def test_samplers_are_found_again(self, sampler):
        params = ddpm_jax.load("digits-16")
        recipe = Recipe(params=params, sampler=sampler, seed=5)
        record = Drawn(recipe=recipe, num_images=3, origin={"source": "digits-16"}).record()
        again = drawn_from(json.loads(json.dumps(record, allow_nan=False)))
        assert again.recipe.sampler == sampler and again.record() == record

    def test_infinite_knobs(self):
        infinite = samplers.Heun(s_churn=1.0, s_tmin=math.inf)
        record = Drawn(
            recipe=Recipe(params=ddpm_jax.load("digits-16"), sampler=infinite), origin={"source": "digits-16"}
        ).record()
        again = drawn_from(json.loads(json.dumps(record | {"num_images": 2}, allow_nan=False)))
        assert again.recipe.sampler == infinite

    def test_what_decides_the_images(self, tmp_path):
        write_flat(tmp_path / "model", small_params(num_class_embeds=3), SHORT)
        params = ddpm_jax.load(tmp_path / "model", dtype="bfloat16")
        unet = dataclasses.replace(params.config.unet, sample_size=(4, 8))
        params = params.replace(config=dataclasses.replace(params.config, unet=unet))
        recipe = Recipe(params=params, sampler=samplers.DDIM(), seed=7, class_label=1, guidance_scale=2.0, null_class=2)
        subject = Drawn(recipe=recipe, num_images=9, batch_size=3, origin={"source": str(tmp_path / "model")})
        again = drawn_from(json.loads(json.dumps(subject.record())))
        assert again.recipe.settings() == recipe.settings() and again.recipe.shape == (4, 8, 1)
        assert (again.num_images, again.batch_size, again.resolution) == (9, 3, None)

    def test_broken_ones(self):
        recipe = Recipe(params=ddpm_jax.load("digits-16"), sampler=samplers.DDIM())
        record = Drawn(recipe=recipe, num_images=2, origin={"source": "digits-16"}).record()
        for items, message in [
            ({"sampler": {"class": "Mine", "knobs": {}}}, "The sampler 'Mine' is none of this package"),
            ({"sampler": {"class": "DDIM", "knobs": {"x": 1}}}, "The record of the drawn images is broken"),
            ({"num_images": 0}, "`num_images` must be at least 1"),
        ]:
            with pytest.raises(ValueError, match=message):
                drawn_from(record | items)


class Page(HTMLParser):
    """What a page holds; every element is closed in order."""

    EMPTY = ("meta", "img", "line", "polyline")

    def __init__(self, path):
        super().__init__()
        self.open, self.addresses, self.text, self.tags = [], [], [], []
        self.feed(Path(path).read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


EVIL = '<script>alert("1")</script>&amp;'


class TestPage:
    def test_is_whole_and_holds_all_it_shows(self, tmp_path):
        np.savez("real.npz", images=REAL)
        evaluate(drawn(tmp_path / "model"), "real.npz", "out", num_resamples=3, bits_per_dim=5)
        text = Path("out/report.html").read_text()
        shown = Page("out/report.html")
        assert len(shown.addresses) == 2 and all(one.startswith("data:image/png;base64,") for one in shown.addresses)
        assert "url(" not in text and "@import" not in text and "//" not in text.split("base64")[0]
        assert {"script", "link", "iframe"}.isdisjoint(shown.tags)
        found = read_report("out")["results"]
        said = "".join(shown.text)
        for score in found["metrics"].values():
            assert f"{score['value']:.5g}" in said and f"{score['low']:.5g} to {score['high']:.5g}" in said
        assert f"{found['likelihood']['bits_per_dim']['value']:.5g}" in said
        assert "DDIM(num_steps=3)" in said and "Not computed" in said and "polyline" in shown.tags

    def test_escapes_every_text(self, tmp_path):
        folder_of(tmp_path / "<b>images&amp;", FAKE)
        evaluate("<b>images&amp;", "<b>images&amp;", "out", num_resamples=0)
        shown = Page("out/report.html")
        assert "b" not in shown.tags and any(text.endswith("<b>images&amp;") for text in shown.text)
        whole = read_report("out")

        def evil(value):
            if isinstance(value, dict):
                return {name: evil(item) for name, item in value.items()}
            return EVIL if isinstance(value, str) else [EVIL] if isinstance(value, list) and not value else value

        record = {part: evil(whole[part]) for part in report.PARTS}
        record["protocol"]["drawn"] = {"model": EVIL, EVIL: EVIL}
        record["seconds"] = {EVIL: 1.0}
        record["results"]["warnings"] = [EVIL]
        Path("evil.html").write_text(page.html(record, {}), encoding="utf-8")
        assert "script" not in Page("evil.html").tags
        assert Path("evil.html").read_text().count("&lt;script&gt;") > 20

    def test_shows_images_of_all_sizes(self, tmp_path):
        """Large ones smaller, those of several sizes alike, grey beside colour."""
        real = np.random.default_rng(0).integers(0, 256, (3, 200, 120, 3), np.uint8)
        folder_of(tmp_path / "real", real)
        made = page.pictures(
            evaluation.open_images("digits"), evaluation.open_images(str(tmp_path / "real")), resolution=None
        )
        sizes = {}
        for name, png in made.items():
            (tmp_path / f"{name}.png").write_bytes(png)
            sizes[name] = ddpm_jax.pixels.Image.open(tmp_path / f"{name}.png").size
        assert sizes == {"images": (6 * 8 + 5 * 2, 6 * 8 + 5 * 2), "reference": (2 * 96 + 2, 2 * 96 + 2)}

    def test_is_written_whole_or_not_at_all(self, evaluated, monkeypatch):
        path = evaluated / "report.json"
        before = path.read_text()
        with pytest.raises(TypeError):
            write_report(path, {"settings": object()})
        assert path.read_text() == before


@pytest.mark.slow
class TestInception:
    def test_of_random_weights(self, tmp_path, monkeypatch):
        """Features and logits; the report is repeated, and other weights of the extractor are found."""
        monkeypatch.setattr(inception_weights, "read_torch_pickle", lambda _: torch_peers.inception_tensors())
        weights = tmp_path / "weights.pth"
        weights.write_bytes(b"weights")
        np.savez("real.npz", images=REAL[:16])
        np.savez("fake.npz", images=FAKE[:12])
        options = {"features": "inception-2048/torch-fidelity", "weights": weights, "num_resamples": 2}
        with pytest.warns(UserWarning, match="is not the file of which published FIDs are made"):
            results = evaluate("fake.npz", "real.npz", "out", **options)["results"]
        assert results["not_computed"] == {} and 1 < results["metrics"]["inception_score"]["value"] < 1008
        extractor = evaluation.extractor(options["features"], weights=weights)
        real, fake = extractor(REAL[:16]), extractor(FAKE[:12])
        # another batch size in float32
        np.testing.assert_allclose(
            results["metrics"]["fid"]["value"], evaluation.fid(real.values, fake.values), rtol=1e-3
        )
        assert verify("out").differences == ()
        weights.write_bytes(b"others")
        (changed_extractor,) = verify("out").differences
        assert changed_extractor.startswith("extractor 'inception-2048/torch-fidelity/weights-")
