"""An option of `load`, and of the commands that hand theirs on to it, acts or is refused by its name."""

import inspect

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import make_params
from test_checkpoint import STEM, equal, write_flat

from ddpm_jax.checkpoint import load, save
from ddpm_jax.checkpoint.folder import write_config

# A value that is not the default for each option of `load`.
LOAD_OPTIONS = {
    **{"revision": "v9", "variant": "fp16", "subfolder": "inner", "token": "x", "cache_dir": "cache"},
    **{"local_files_only": True, "ema": True, "dtype": "bfloat16"},
}


def write_every_kind(folder):
    """A pipeline with other weights in its variant (seed 1), its subfolder `inner` (2) and its `unet_ema` (3)."""
    save(make_params(0), folder, format="diffusers")
    write_flat(folder / "unet", make_params(1), scheduler=None, name=f"{STEM}.fp16.safetensors")
    save(make_params(2), folder / "inner", format="diffusers")
    write_flat(folder / "unet_ema", make_params(3), scheduler=None)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    save(make_params(0), root / "ours")
    save(make_params(2), root / "ours/inner")
    run = root / "run"
    save(make_params(2), run / "inner")
    write_config(make_params(0).config, run, None)
    (run / "train.json").write_text("{}")
    with ocp.CheckpointManager(run / "checkpoints") as manager:
        trees = {"weights": make_params(1).weights, "ema": make_params(0).weights}
        manager.save(7, args=ocp.args.StandardSave(trees))
    return {
        "diffusers": write_every_kind(root / "diffusers"),
        "ours": root / "ours",
        "run": run,
        "bundled": "digits-16",
        "nothing": None,
    }


class TestOptions:
    """An option of `load` acts, or is refused by its name, for whatever it is given with; test_hub.py has the hub."""

    def test_all_are_tried(self):
        assert LOAD_OPTIONS.keys() == inspect.signature(load).parameters.keys() - {"source"}
        for name, parameter in inspect.signature(load).parameters.items():
            assert name == "source" or LOAD_OPTIONS[name] != parameter.default

    @pytest.mark.parametrize("option", LOAD_OPTIONS)
    @pytest.mark.parametrize("kind", ["diffusers", "ours", "run", "bundled", "nothing"])
    def test_each_acts_or_is_refused(self, sources, kind, option):
        given = {option: LOAD_OPTIONS[option]}
        source = sources[kind]
        if option in ("revision", "token", "cache_dir", "local_files_only"):
            with pytest.raises(ValueError, match=f"`{option}` is for the hub, but .* is a folder on this machine"):
                load(source, **given)
        elif option == "dtype":
            assert load(source).config.unet.dtype == "float32"
            assert load(source, **given).config.unet.dtype == "bfloat16"
        elif kind in ("bundled", "nothing"):
            words = {"variant": "no unet/.*fp16", "subfolder": "has no folder inner", "ema": "no unet_ema/config.json"}
            with pytest.raises(FileNotFoundError, match=words[option]):
                load(source, **given)
        elif option == "subfolder":
            assert equal(load(source), make_params(0)) and equal(load(source, **given), make_params(2))
        elif kind == "diffusers":
            assert equal(load(source, **given), make_params({"variant": 1, "ema": 3}[option]))
        elif kind == "run" and option == "ema":
            assert equal(load(source, ema=True), make_params(0)) and equal(load(source, ema=False), make_params(1))
        else:
            with pytest.raises(ValueError, match=f"`{option}` is for diffusers folders; .* is (in|a training run)"):
                load(source, **given)

    def test_weights_that_are_not_averaged(self, sources):
        assert equal(load(sources["diffusers"], ema=False), make_params(0))
        with pytest.raises(ValueError, match="`ema` is for diffusers folders"):
            load(sources["ours"], ema=False)

    def test_the_options_of_commands(self, sources, tmp_path):
        """convert, export and info hand theirs on to `load`, which refuses them; export takes none."""
        from ddpm_jax.cli import checkpoints

        for command, others in ((checkpoints.convert, {"out": tmp_path / "x"}), (checkpoints.info, {})):
            takes = inspect.signature(command).parameters.keys() & LOAD_OPTIONS.keys()
            assert {"revision", "variant", "subfolder"} <= takes
            for option in takes:
                error = ValueError if option == "revision" else FileNotFoundError
                with pytest.raises(error):
                    command("digits-16", **others, **{option: LOAD_OPTIONS[option]})
        assert not inspect.signature(checkpoints.export).parameters.keys() & LOAD_OPTIONS.keys()
        for option, seed in {"variant": 1, "subfolder": 2, "ema": 3}.items():
            checkpoints.convert(
                str(sources["diffusers"]), tmp_path / option, **{option: LOAD_OPTIONS[option]}, storage_dtype="bfloat16"
            )
            rounded = jax.tree.map(
                lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32), make_params(seed)
            )
            assert equal(load(tmp_path / option), rounded)
