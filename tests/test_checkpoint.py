"""Folders in every layout, there and back bit for bit, and what is refused."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import NCSNPP, SHARED, make_params, random_state_dict

import ddpm_jax
from ddpm_jax.checkpoint import from_state_dict, load, save, to_state_dict
from ddpm_jax.checkpoint.families.diffusers_files import find_files
from ddpm_jax.checkpoint.folder import is_run, read_record
from ddpm_jax.checkpoint.source import BUNDLED, DEMO, bundled, locate
from ddpm_jax.config import Config, SamplerConfig, ScheduleConfig, UNetConfig
from ddpm_jax.schedule import betas

SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
STEM = "diffusion_pytorch_model"


def equal(one, other):
    assert one.config == other.config
    jax.tree.map(np.testing.assert_array_equal, one.weights, other.weights)
    return True


def write_flat(folder, params, scheduler=SCHEDULER, name=f"{STEM}.safetensors"):
    """The layout of google/ddpm-*: everything at the root."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4"} | params.config.unet.to_dict()
    (folder / "config.json").write_text(json.dumps(config))
    if scheduler:
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    safetensors.numpy.save_file(to_state_dict(params), folder / name, {"format": "pt"})
    return folder


@pytest.fixture
def google():
    """A tiny network with the scheduler config of a google repository."""
    params = make_params()
    sampler = SamplerConfig("DDPMScheduler", (("clip_sample", True), ("variance_type", "fixed_large")))
    return ddpm_jax.Params(params.weights, Config(params.config.unet, ScheduleConfig(), sampler))


class TestLayouts:
    def test_flat(self, tmp_path, google):
        (write_flat(tmp_path / "x", google) / "model_index.json").write_text("{}")
        assert equal(load(tmp_path / "x"), google)

    def test_pipeline(self, tmp_path, google):
        save(google, tmp_path / "x", format="diffusers")
        assert equal(load(tmp_path / "x"), google)
        index = json.loads((tmp_path / "x/model_index.json").read_text())
        assert index["unet"] == ["diffusers", "UNet2DModel"] and index["_class_name"] == "DDPMPipeline"

    def test_bare_unet_folder(self, tmp_path, google):
        save(google, tmp_path / "x", format="diffusers")
        assert equal(load(tmp_path / "x/unet"), google)  # with the scheduler beside it
        shutil.rmtree(tmp_path / "x/scheduler")
        with pytest.warns(UserWarning, match="no scheduler_config.json: the defaults of DDPMScheduler are used"):
            alone = load(tmp_path / "x/unet")
        assert alone.config.sampler == SamplerConfig() and alone.config.schedule == ScheduleConfig()
        with pytest.warns(UserWarning, match="no scheduler_config.json"):
            assert equal(load(tmp_path / "x", subfolder="unet"), alone)

    def test_checkpoint_of_a_trainer(self, tmp_path, google):
        """run/checkpoint-500/unet, with run/scheduler beside the checkpoints."""
        save(google, tmp_path / "run", format="diffusers")
        (tmp_path / "run/checkpoint-500").mkdir()
        (tmp_path / "run/unet").rename(tmp_path / "run/checkpoint-500/unet")
        assert equal(load(tmp_path / "run/checkpoint-500"), google)

    def test_ema(self, tmp_path, google):
        save(google, tmp_path / "x", format="diffusers")
        averaged = jax.tree.map(lambda leaf: leaf * 0.5, google)
        write_flat(tmp_path / "x/unet_ema", averaged, scheduler=None)
        path = tmp_path / "x/unet_ema/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"decay": 0.9999, "optimization_step": 5}))
        assert equal(load(tmp_path / "x"), google)
        assert equal(load(tmp_path / "x", ema=True), averaged)
        assert equal(load(tmp_path / "x", ema=False), google)
        shutil.rmtree(tmp_path / "x/unet")
        assert equal(load(tmp_path / "x"), averaged)
        shutil.rmtree(tmp_path / "x/unet_ema")
        with pytest.raises(FileNotFoundError, match="unet_ema/config.json.*no UNet2DModel checkpoint with EMA"):
            load(tmp_path / "x", ema=True)

    def test_variant(self, tmp_path, google):
        folder = write_flat(tmp_path / "x", google)
        half = jax.tree.map(lambda leaf: leaf.astype("float16"), google)
        write_flat(folder, half, name=f"{STEM}.fp16.safetensors")
        loaded = load(folder, variant="fp16")
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
        assert equal(loaded, jax.tree.map(lambda leaf: leaf.astype("float32"), half))
        with pytest.raises(FileNotFoundError, match="There is variant='fp16'"):
            load(folder, variant="bf16")

    @pytest.mark.parametrize("variant", [None, "fp16"])
    @pytest.mark.parametrize("legacy", [False, True])
    def test_shards(self, tmp_path, google, variant, legacy):
        tensors = to_state_dict(google)
        names = sorted(tensors)
        folder = write_flat(tmp_path / "x", google)
        (folder / f"{STEM}.safetensors").unlink()
        places = {}
        for shard in range(2):
            tail = f"{shard + 1:05d}-of-00002"
            file = f"{STEM}-{tail}.safetensors"
            if variant:
                file = f"{STEM}-{tail}.{variant}.safetensors" if legacy else f"{STEM}.{variant}-{tail}.safetensors"
            mine = names[shard::2]
            safetensors.numpy.save_file({name: tensors[name] for name in mine}, folder / file)
            places |= dict.fromkeys(mine, file)
        index = f"{STEM}.safetensors.index.json"
        if variant:
            index = f"{STEM}.safetensors.{variant}.index.json" if legacy else f"{STEM}.safetensors.index.{variant}.json"
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        assert equal(load(folder, variant=variant), google)
        files = find_files([path.name for path in folder.iterdir()], variant=variant)
        assert set(files.weights) == set(places.values())
        (folder / file).unlink()
        with pytest.raises(FileNotFoundError, match="names the shard"):
            load(folder, variant=variant)

    @pytest.mark.parametrize(
        "places, message",
        [
            ({"conv_in.bias": "../other.safetensors"}, "names the shard ../other.safetensors, which is not in"),
            ({"conv_in.bias": f"{STEM}.safetensors", "no_tensor": f"{STEM}.safetensors"}, r"lacks \['no_tensor'\]"),
            ({"conv_in.bias": 1}, "has no `weight_map`"),
            (["conv_in.bias"], "has no `weight_map`"),
        ],
    )
    def test_an_index_that_is_wrong(self, tmp_path, google, places, message):
        """A shard is a file beside its index, and never one elsewhere, though it is there."""
        folder = write_flat(tmp_path / "x", google)
        shutil.copy(folder / f"{STEM}.safetensors", tmp_path / "other.safetensors")
        (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load(folder)

    def test_a_run_is_known_by_its_record(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        assert not is_run(tmp_path)
        with pytest.raises(FileNotFoundError, match="is no training run: it has no train.json"):
            read_record(tmp_path)
        (tmp_path / "train.json").write_text('{"parameters": 3}')
        assert is_run(tmp_path) and read_record(tmp_path) == {"parameters": 3}

    def test_old_attention_names(self, google):
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        old = {}
        for name, value in to_state_dict(google).items():
            for new, before in names.items():
                name = name.replace(f".{new}.", f".{before}.")
            old[name] = value
        assert any(".proj_attn." in name for name in old)
        assert equal(from_state_dict(old, google.config), google)

    def test_names_of_diffusers_0_0(self, google):
        renamed = {"mid_block.": "mid.", "down_blocks.": "downsample_blocks.", "up_blocks.": "upsample_blocks."}
        old = {}
        for name, value in to_state_dict(google).items():
            for new, before in renamed.items():
                name = before + name.removeprefix(new) if name.startswith(new) else name
            old[name] = value
        assert equal(from_state_dict(old, google.config), google)

    def test_bfloat16_files(self, tmp_path, google):
        save(google, tmp_path / "x", format="diffusers", storage_dtype="bfloat16")
        rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32), google)
        assert equal(load(tmp_path / "x"), rounded)


class TestThereAndBack:
    @pytest.mark.parametrize("format", ["ddpm_jax", "diffusers"])
    @pytest.mark.parametrize("changes", [{}, {"time_embedding_type": "fourier"}, {"num_class_embeds": 3}])
    def test_bit_equal(self, tmp_path, format, changes):
        params = make_params(**changes)
        assert equal(load(save(params, tmp_path / "x", format=format)), params)

    @pytest.mark.parametrize("format", ["ddpm_jax", "diffusers"])
    def test_names_of_classes(self, tmp_path, format):
        params = make_params(num_class_embeds=3)
        config = dataclasses.replace(params.config, class_names=("pear", "Äpfel"), null_class=2)
        folder = ddpm_jax.save(params.replace(config=config), tmp_path / "named", format=format)
        assert load(folder).config == config

    def test_state_dict(self):
        config = UNetConfig(**NCSNPP)
        state_dict = random_state_dict(config)
        back = to_state_dict(from_state_dict(state_dict, Config(config)))
        assert back.keys() == state_dict.keys()
        for name, value in back.items():
            assert value.flags.c_contiguous
            np.testing.assert_array_equal(value, state_dict[name])

    def test_a_published_file_is_reproduced(self, tmp_path):
        digits = BUNDLED / "digits-16"
        save(load("digits-16"), tmp_path / "ours")
        save(load(tmp_path / "ours"), tmp_path / "back", format="diffusers")
        name = f"unet/{STEM}.safetensors"
        before, after = (safetensors.numpy.load_file(folder / name) for folder in (digits, tmp_path / "back"))
        assert before.keys() == after.keys()
        for key in before:
            np.testing.assert_array_equal(before[key], after[key])
        for name in ("unet/config.json", "scheduler/scheduler_config.json"):
            assert json.loads((digits / name).read_text()) == json.loads((tmp_path / "back" / name).read_text())

    @pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with the original checkpoint is absent")
    def test_digits_are_the_shared_checkpoint(self):
        assert equal(load(SHARED / "checkpoints/digits-16"), load("digits-16"))

    def test_what_comes_with_the_package(self, tmp_path, monkeypatch, google):
        """It has names; a folder of such a name is opened instead, but for the demo that nobody named."""
        monkeypatch.chdir(tmp_path)
        for name in bundled():
            assert locate(name).folder == BUNDLED / name
            save(google, name)
        assert equal(load("digits-16"), google)
        assert locate().folder == BUNDLED / DEMO
        with pytest.raises(ValueError, match="`revision` is for the hub"):
            locate(revision="main")
        with pytest.raises(FileNotFoundError, match=r"that come with the package, \['digits-16'"):
            locate("./digits")

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_storage_dtype_halves_the_file(self, tmp_path, dtype):
        params = make_params(block_out_channels=(16, 32))  # 0.7 MB: beside it, what orbax writes of its own is little
        save(params, tmp_path / "x", storage_dtype=dtype)
        loaded = load(tmp_path / "x")
        kind = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[dtype]
        assert equal(loaded, jax.tree.map(lambda leaf: np.asarray(leaf).astype(kind).astype(np.float32), params))
        save(params, tmp_path / "y")
        size = lambda folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        assert size(tmp_path / "x") < 0.6 * size(tmp_path / "y")  # a half, and up to 50 kB of metadata

    def test_schedules_diffusers_does_not_know_become_trained_betas(self, tmp_path):
        params = make_params(schedule=ScheduleConfig(beta_schedule="warmup10"))
        save(params, tmp_path / "x", format="diffusers")
        schedule = load(tmp_path / "x").config.schedule
        np.testing.assert_allclose(betas(schedule), betas(params.config.schedule), rtol=1e-7)  # float32
        save(params, tmp_path / "y")
        assert load(tmp_path / "y").config.schedule.beta_schedule == "warmup10"

    def test_variance_exploding(self, tmp_path):
        ve = ScheduleConfig(kind="ve", num_train_timesteps=2000, sigma_min=0.01, sigma_max=380.0)
        params = make_params(time_embedding_type="fourier")
        config = Config(params.config.unet, ve, SamplerConfig("ScoreSdeVeScheduler", (("snr", 0.075),)))
        params = ddpm_jax.Params(params.weights, config)
        for format in ("ddpm_jax", "diffusers"):
            assert equal(load(save(params, tmp_path / format, format=format)), params)
        (tmp_path / "diffusers/scheduler/scheduler_config.json").unlink()
        with pytest.raises(FileNotFoundError, match="needs for its noise levels"):
            load(tmp_path / "diffusers")

    def test_dtype(self, tmp_path, google):
        save(google, tmp_path / "x")
        for source in (tmp_path / "x", None):
            params = load(source, dtype="bfloat16")
            assert params.config.unet.dtype == "bfloat16"
            assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))

    def test_where_it_came_from(self, tmp_path, google):
        save(google, tmp_path / "x", source={"model": "google/ddpm-test", "revision": "abc"})
        assert json.loads((tmp_path / "x/ddpm_jax.json").read_text())["source"]["model"] == "google/ddpm-test"


class TestBrokenCheckpoints:
    def test_all_wrong_tensors_are_listed_at_once(self, tmp_path, google):
        tensors = to_state_dict(google)
        del tensors["conv_in.bias"], tensors["mid_block.resnets.0.norm1.weight"]
        tensors["conv_out.weight"] = np.zeros((3, 8, 3, 3), np.float32)
        tensors["time_proj.W"] = np.zeros(4, np.float32)
        folder = write_flat(tmp_path / "x", google)
        safetensors.numpy.save_file(tensors, folder / f"{STEM}.safetensors")
        with pytest.raises(ValueError) as error:
            load(folder)
        for line in (
            "4 tensors are wrong",
            "missing     conv_in.bias [8]",
            "missing     mid_block.resnets.0.norm1.weight [16]",
            "mis-shaped  conv_out.weight: [3, 8, 3, 3] in the file, [1, 8, 3, 3] by the config",
            "unexpected  time_proj.weight [4]",
        ):
            assert line in str(error.value)

    def test_weights_of_another_architecture(self, tmp_path, google):
        folder = write_flat(tmp_path / "x", google)
        config = json.loads((folder / "config.json").read_text()) | {"layers_per_block": 2}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"missing     down_blocks.0.resnets.1.conv1.weight \[8, 8, 3, 3\]"):
            load(folder)

    def test_our_folder_with_another_config(self, tmp_path, google):
        save(google, tmp_path / "x")
        items = json.loads((tmp_path / "x/ddpm_jax.json").read_text())
        items["unet"]["block_out_channels"] = [8, 32]
        (tmp_path / "x/ddpm_jax.json").write_text(json.dumps(items))
        with pytest.raises(ValueError, match="mis-shaped"):
            load(tmp_path / "x")

    @pytest.mark.parametrize(
        "name, family",
        [
            ("input_blocks.0.0.weight", "OpenAI's guided-diffusion"),
            ("temb.dense.0.weight", "pesser"),
            ("module.temb.dense.0.weight", "pesser"),
            ("down_blocks.0.attentions.0.transformer_blocks.0.norm1.weight", "text-conditional UNet2DConditionModel"),
            ("encoder.down_blocks.0.resnets.0.conv1.weight", "an autoencoder"),
            ("model.diffusion_model.input_blocks.0.0.weight", "Stable Diffusion's original"),
        ],
    )
    def test_other_families_are_named(self, tmp_path, google, name, family):
        folder = write_flat(tmp_path / "x", google)
        safetensors.numpy.save_file({name: np.zeros((2, 2), np.float32)}, folder / f"{STEM}.safetensors")
        with pytest.raises(ValueError, match=family):
            load(folder)

    def test_latent_pipelines(self, tmp_path, google):
        save(google, tmp_path / "x", format="diffusers")
        path = tmp_path / "x/model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vqvae": ["diffusers", "VQModel"]}))
        with pytest.raises(ValueError, match="with vqvae beside its UNet: a latent or conditional model"):
            load(tmp_path / "x")
        assert equal(load(tmp_path / "x/unet"), google)  # for those who know what they do

    def test_tensors_saved_twice(self, tmp_path):
        """diffusers 0.0.x: time_proj.W beside time_proj.weight, downsamplers.0.op beside .conv."""
        params = make_params(time_embedding_type="fourier")
        state_dict = to_state_dict(params)
        twice = state_dict | {"time_proj.W": state_dict["time_proj.weight"]}
        conv = "down_blocks.0.downsamplers.0.conv.weight"
        twice |= {conv.replace("conv", "op"): state_dict[conv], conv.replace("conv", "Conv2d_0"): state_dict[conv]}
        assert equal(from_state_dict(twice, params.config), params)
        with pytest.raises(ValueError, match="hold `time_proj.weight` twice, once as `time_proj.W`"):
            from_state_dict(twice | {"time_proj.W": state_dict["time_proj.weight"] + 1}, params.config)

    def test_configs_of_other_families(self, tmp_path, google):
        folder = write_flat(tmp_path / "x", google)
        (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        with pytest.raises(ValueError, match="describes a UNet2DConditionModel"):
            load(folder)

    def test_truncated_safetensors(self, tmp_path, google):
        folder = write_flat(tmp_path / "x", google)
        path = folder / f"{STEM}.safetensors"
        whole = path.read_bytes()
        for broken in (whole[:1000], whole[:-8], b"", b"\xff" * 100):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match="is truncated or no safetensors file"):
                load(folder)

    def test_git_lfs_pointer(self, tmp_path, google):
        folder = write_flat(tmp_path / "x", google)
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
        (folder / f"{STEM}.safetensors").write_text(pointer)
        with pytest.raises(ValueError, match="is a Git-LFS pointer"):
            load(folder)

    @pytest.mark.parametrize("text", ["{", "[]", "\xff"])
    @pytest.mark.parametrize("name", ["config.json", "scheduler_config.json"])
    def test_broken_json(self, tmp_path, google, name, text):
        folder = write_flat(tmp_path / "x", google)
        (folder / name).write_bytes(text.encode("latin1"))
        with pytest.raises(ValueError, match=f"{name} (is no JSON file|must hold a JSON object)"):
            load(folder)

    def test_newer_format(self, tmp_path, google):
        save(google, tmp_path / "x")
        (tmp_path / "x/ddpm_jax.json").write_text('{"format_version": 99}')
        with pytest.raises(ValueError, match="has format_version 99"):
            load(tmp_path / "x")

    def test_damaged_weights_of_ours(self, tmp_path, google):
        save(google, tmp_path / "x")
        data = max((tmp_path / "x/weights").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
        with pytest.raises(ValueError, match="damaged"):
            load(tmp_path / "x")
        shutil.rmtree(tmp_path / "x/weights")
        with pytest.raises(FileNotFoundError, match="no folder `weights`"):
            load(tmp_path / "x")

    def test_not_a_checkpoint(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no UNet2DModel checkpoint"):
            load(tmp_path)
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(FileNotFoundError, match=f"no {STEM}.safetensors or .bin"):
            load(tmp_path)
        with pytest.raises(FileNotFoundError, match="is a file. Name the folder"):
            load(tmp_path / "config.json")
        with pytest.raises(FileNotFoundError, match="has no folder unet"):
            load(tmp_path, subfolder="unet")
        with pytest.raises(FileNotFoundError, match="There is no folder"):
            load(tmp_path / "absent")
        with pytest.raises(ValueError, match="`revision` is for the hub"):
            load(tmp_path, revision="main")


class TestSaving:
    def test_a_source_has_no_place_in_a_folder_of_diffusers(self, tmp_path, google):
        with pytest.raises(ValueError, match='`source` is for `format` "ddpm_jax": .* Leave it out'):
            save(google, tmp_path / "x", format="diffusers", source={"model": "a/b"})
        assert not (tmp_path / "x").exists()

    def test_a_card_goes_with_both_formats(self, tmp_path, google):
        for format in ("ddpm_jax", "diffusers"):
            assert (save(google, tmp_path / format, format=format, card="# Cats") / "README.md").read_text() == "# Cats"

    def test_existing_folder(self, tmp_path, google):
        save(google, tmp_path / "x")
        with pytest.raises(FileExistsError, match="exists already"):
            save(google, tmp_path / "x")
        other = jax.tree.map(lambda leaf: leaf + 1, google)
        save(other, tmp_path / "x", overwrite=True)
        assert equal(load(tmp_path / "x"), other)
        assert [path.name for path in tmp_path.iterdir()] == ["x"]

    def test_never_overwrites_what_is_no_checkpoint(self, tmp_path, google):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(FileExistsError, match="may not be overwritten: it is not empty"):
            save(google, tmp_path, overwrite=True)
        assert (tmp_path / "thesis.tex").exists()
        with pytest.raises(NotADirectoryError):
            save(google, tmp_path / "thesis.tex", overwrite=True)
        with pytest.raises(NotADirectoryError):
            save(google, tmp_path / "thesis.tex/x")

    def test_an_interrupted_save_leaves_nothing(self, tmp_path, google, monkeypatch):
        import ddpm_jax.checkpoint.source as source

        def broken(*args):
            (args[1] / "half").write_text("")
            raise KeyboardInterrupt

        save(google, tmp_path / "old")
        monkeypatch.setattr(source, "write_ours", broken)
        for target in ("new", "old"):
            with pytest.raises(KeyboardInterrupt):
                save(jax.tree.map(lambda leaf: leaf + 1, google), tmp_path / target, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        assert equal(load(tmp_path / "old"), google)

    def test_a_folder_that_appears_while_we_write(self, tmp_path, google, monkeypatch):
        import ddpm_jax.checkpoint.source as source

        def slow(params, folder, *args):
            (tmp_path / "x").mkdir()
            (tmp_path / "x/somebody elses").write_text("")

        monkeypatch.setattr(source, "write_ours", slow)
        with pytest.raises(FileExistsError):
            save(google, tmp_path / "x")
        assert [path.name for path in tmp_path.rglob("*")] == ["x", "somebody elses"]

    def test_float16_overflow(self, tmp_path, google):
        huge = jax.tree.map(lambda leaf: leaf * 1e6, google)
        with pytest.raises(ValueError, match="beyond the range of float16"):
            save(huge, tmp_path / "x", storage_dtype="float16")
        assert not (tmp_path / "x").exists()

    def test_unknown_words(self, tmp_path, google, untyped):
        with pytest.raises(ValueError, match="`dtype` must be"):
            load(tmp_path, dtype="float16")
        with pytest.raises(ValueError, match="`format` must be one of"):
            save(google, tmp_path / "x", format="flax")
        with pytest.raises(ValueError, match="`storage_dtype` must be one of"):
            save(google, tmp_path / "x", storage_dtype="int8")
        with pytest.raises(TypeError, match="must be ddpm_jax.Params"):
            save(google.weights, tmp_path / "x")
