"""Checkpoints as people have them: pipelines of more parts, JSON of more keys, runs that diverged; and `info`."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import make_params, small_params
from test_checkpoint import equal, write_flat

from ddpm_jax import cli
from ddpm_jax.checkpoint import load, save
from ddpm_jax.checkpoint.folder import write_config
from ddpm_jax.training.checkpoints import Checkpoints


@pytest.fixture
def run(tmp_path):
    """The folder of a training run, written by hand, that diverged after step 10."""
    params = make_params(num_class_embeds=3)
    config = dataclasses.replace(params.config, class_names=("pear", "apple"), null_class=2)
    write_config(config, tmp_path / "run", {"trained_by": "train.json"})
    record = {"data": {"images": 12, "channels": 1, "classes": ["pear", "apple"]}}
    record["config"] = {"objective": {"label_dropout": 0.1}}
    (tmp_path / "run/train.json").write_text(json.dumps(record))
    for step, factor in ((10, 0.5), (20, np.nan)):
        with contextlib.closing(Checkpoints(tmp_path / "run/checkpoints", keep_last=None, keep_every=0)) as saved:
            tree = jax.tree.map(lambda leaf, factor=factor: np.asarray(leaf) * np.float32(factor), params.weights)
            saved.save(step, {"weights": params.weights, "ema": tree})
    return tmp_path / "run"


class TestExtras:
    @pytest.mark.parametrize(
        "extra",
        [
            {"mel": ["audio_diffusion", "Mel"]},
            {"mel": ["audio_diffusion", "Mel"], "vqvae": [None, None]},
            {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True},
            {"feature_extractor": ["transformers", "CLIPImageProcessor"], "text_encoder": [None, None]},
        ],
    )
    def test_pipelines_with_what_leaves_the_pixels_alone(self, tmp_path, tiny, extra, recwarn):
        """teticio/audio-diffusion-256 has a `mel` that turns the images into sound."""
        save(tiny, tmp_path / "x", format="diffusers")
        path = tmp_path / "x/model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | extra))
        assert equal(load(tmp_path / "x"), tiny)
        assert not recwarn.list
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sharpener": ["some_library", "Sharpener"]}))
        with pytest.warns(UserWarning, match=r"has sharpener \(Sharpener\) beside its UNet: ignored"):
            assert equal(load(tmp_path / "x"), tiny)

    @pytest.mark.parametrize(
        "extra",
        [
            {"first_stage": ["diffusers", "AutoencoderKL"]},
            {"movq": ["diffusers", "VQModel"]},
            {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]},
            {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"], "mel": ["audio_diffusion", "Mel"]},
        ],
    )
    def test_the_way_out_of_a_refused_pipeline(self, tmp_path, tiny, extra):
        save(tiny, tmp_path / "x", format="diffusers")
        path = tmp_path / "x/model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | extra))
        with pytest.raises(ValueError, match="a latent or conditional model.*load it with `subfolder` 'unet'"):
            load(tmp_path / "x")
        assert equal(load(tmp_path / "x", subfolder="unet"), tiny)
        (write_flat(tmp_path / "flat", tiny) / "model_index.json").write_text(path.read_text())
        with pytest.raises(ValueError, match="load it without these entries of model_index.json"):
            load(tmp_path / "flat")

    def test_extra_keys_of_json_files(self, tmp_path, tiny):
        """diffusers warns of them; what is misspelt was meant to act."""
        folder = save(tiny, tmp_path / "x", format="diffusers")
        path = folder / "unet/config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"cross_attention_dim": None, "torch_dtype": "bf16"}))
        with pytest.warns(UserWarning, match="UNet2DModel has no field `torch_dtype`: ignored"):
            assert equal(load(folder), tiny)
        path.write_text(json.dumps(config | {"layer_per_block": 2}))
        with pytest.raises(ValueError, match="Did you mean `layers_per_block`"):
            load(folder)
        path.write_text(json.dumps(config))
        path = folder / "scheduler/scheduler_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"notes": "x", "later": None}))
        with pytest.warns(UserWarning, match="A scheduler has no field `notes`: ignored"):
            assert equal(load(folder), tiny)

    @pytest.mark.filterwarnings("ignore:A schedule has no field")
    def test_later_fields_of_our_format(self, tmp_path, tiny):
        path = save(tiny, tmp_path / "x") / "ddpm_jax.json"
        items = json.loads(path.read_text()) | {"licence": "MIT"}
        items["schedule"] |= {"shift": None, "later": 3}
        path.write_text(json.dumps(items))
        with pytest.warns(UserWarning, match="A schedule has no field `later`: ignored"):
            assert equal(load(tmp_path / "x"), tiny)
        for sampler in ({"items": {}}, {"class_name": "DDPMScheduler", "items": [1]}):
            path.write_text(json.dumps(items | {"sampler": sampler}))
            with pytest.raises(ValueError, match="`sampler` must be a `class_name` and `items`"):
                load(tmp_path / "x")

    def test_dtypes_of_8_bits(self, tmp_path, tiny):
        folder = write_flat(tmp_path / "x", tiny)
        header = json.dumps({"conv_in.bias": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
        weights = len(header).to_bytes(8, "little") + header + b"\0\0"
        (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights)
        with pytest.raises(ValueError, match="of a dtype that is not read here .*store it in float32"):
            load(folder)


class TestRuns:
    def test_a_checkpoint_with_nan_is_passed_over(self, run):
        params = make_params(num_class_embeds=3)
        with pytest.warns(UserWarning, match=r"step 10 .*; newer ones cannot be: 20: \d+ of \d+ tensors hold NaN"):
            loaded = load(run)
        jax.tree.map(lambda one, two: np.testing.assert_array_equal(one, two / 2), loaded.weights, params.weights)
        jax.tree.map(np.testing.assert_array_equal, load(run, ema=False).weights, params.weights)
        shutil.rmtree(run / "checkpoints/10")
        with pytest.raises(ValueError, match="No checkpoint of .* can be read .*20: .*hold NaN"):
            load(run)

    def test_classes_of_a_run_of_version_0_1(self, run):
        before = load(run, ema=False).config
        items = json.loads((run / "ddpm_jax.json").read_text())
        del items["class_names"], items["null_class"]
        (run / "ddpm_jax.json").write_text(json.dumps(items))
        assert load(run, ema=False).config == before and before.class_names == ("pear", "apple")


class TestInfo:
    def info(self, capsys, *words):
        cli.main(["info", *map(str, words)])
        return capsys.readouterr().out

    def test_classes_by_number_and_name(self, tmp_path, capsys):
        params = small_params(num_class_embeds=4)
        config = dataclasses.replace(params.config, class_names=("pear", "10", "Äpfel"), null_class=3)
        for format in ("ddpm_jax", "diffusers"):
            out = self.info(capsys, save(params.replace(config=config), tmp_path / format, format=format))
            assert "classes     0: pear, 1: 10, 2: Äpfel\n" in out
            assert "classes     3 means no class" in out
            assert "trained on" not in out

    def test_many_classes(self, tmp_path, capsys):
        params = small_params(num_class_embeds=30)
        names = tuple(f"n{number}" for number in range(30))
        config = dataclasses.replace(params.config, class_names=names)
        out = self.info(capsys, save(params.replace(config=config), tmp_path / "x"))
        assert "0: n0, 1: n1," in out and "19: n19, and 10 more\n" in out and "means no class" not in out

    def test_what_a_run_was_trained_on(self, run, capsys):
        shutil.rmtree(run / "checkpoints/20")
        out = self.info(capsys, run)
        assert "trained on  12 images, 1 channels, 2 classes\n" in out
        assert "classes     0: pear, 1: apple\n" in out and "2 means no class" in out

    def test_a_size_that_cannot_be_drawn(self, tmp_path, capsys):
        stale = make_params(sample_size=(7, 8))
        out = self.info(capsys, save(stale, tmp_path / "x"))
        assert "7 x 8 (it cannot draw these: sides must be multiples of 2), 1 -> 1 channels" in out

    def test_weights_without_numbers(self, tmp_path, capsys):
        params = small_params()
        bad = params.replace(weights=jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params.weights))
        folder = write_flat(tmp_path / "x", bad)
        for words in (["info", folder], ["convert", folder, "--out", tmp_path / "out"], ["export", folder, "out"]):
            with pytest.raises(SystemExit):
                cli.main(list(map(str, words)))
            assert "tensors hold NaN or infinity: conv_in.bias" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
