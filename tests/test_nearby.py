"""Folders that people name by mistake, and the message that says what they meant."""

import shutil

import pytest
from conftest import small_params
from test_checkpoint import equal, write_flat

from ddpm_jax.checkpoint import load, save
from ddpm_jax.checkpoint.source import locate


@pytest.fixture
def params():
    return small_params()


@pytest.fixture
def pipeline(tmp_path, params):
    return save(params, tmp_path / "pipe", format="diffusers")


def test_checkpoints_of_a_trainer(tmp_path, params, pipeline):
    for step in (500, 1000, 20):
        (tmp_path / f"run/checkpoint-{step}").mkdir(parents=True)
        shutil.copytree(pipeline / "unet", tmp_path / f"run/checkpoint-{step}/unet_ema")
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path / "run")
    names = [f"{tmp_path}/run/checkpoint-{step}" for step in (20, 500, 1000)]
    assert f"These can be opened: {', '.join(names)}; for example load({names[-1]!r})." in str(error.value)
    with pytest.warns(UserWarning, match="no scheduler_config.json"):
        assert load(names[-1]).config.unet == params.config.unet


@pytest.mark.parametrize(
    "named, opens",
    [
        ("", "pipe"),  # the folder around it
        ("pipe/scheduler", "pipe"),
        ("pipe/unet/config.json", "pipe/unet"),
        ("pipe/unet/diffusion_pytorch_model.safetensors", "pipe/unet"),
        ("pipe/model_index.json", "pipe"),
    ],
)
def test_the_folder_that_was_meant(tmp_path, pipeline, params, named, opens):
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path / named)
    assert str(error.value).endswith(f"can be opened: {tmp_path / opens}; for example load({str(tmp_path / opens)!r}).")
    assert load(tmp_path / opens).config.unet == params.config.unet


def test_a_folder_two_levels_below(tmp_path, pipeline):
    """As of somebody who names the folder of all models."""
    pipeline.rename(tmp_path / "moved")
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "moved").rename(tmp_path / "models/mine/pipe")
    with pytest.raises(FileNotFoundError, match=f"can be opened: {tmp_path}/models/mine/pipe; for"):
        load(tmp_path / "models")


def test_weights_alone(tmp_path, pipeline, params):
    (tmp_path / "far/away").mkdir(parents=True)
    (pipeline / "unet/diffusion_pytorch_model.safetensors").rename(tmp_path / "far/away/model.safetensors")
    with pytest.raises(FileNotFoundError, match="is a file. .* without a config.json open with `from_state_dict`"):
        load(tmp_path / "far/away/model.safetensors")
    shutil.copytree(tmp_path / "far/away", pipeline / "unet", dirs_exist_ok=True)
    with pytest.raises(FileNotFoundError, match="no unet/diffusion_pytorch.* Should unet/model.safetensors have that"):
        load(pipeline)


def test_parts_of_our_folders(tmp_path, params):
    save(params, tmp_path / "ours")
    for part in ("weights", "weights/d"):
        with pytest.raises(FileNotFoundError, match=r"These can be opened: .*ours; for example load"):
            load(tmp_path / "ours" / part)


def test_a_subfolder_that_is_not_there(pipeline):
    with pytest.raises(FileNotFoundError, match=r"has no folder unet_ema. .* opened: .*pipe/unet; for example load"):
        load(pipeline, subfolder="unet_ema")


def test_many_folders_are_counted(tmp_path, pipeline):
    for number in range(8):
        shutil.copytree(pipeline, tmp_path / f"all/{number}")
    shutil.rmtree(pipeline)
    with pytest.raises(FileNotFoundError, match=r"opened: 3 others, \S*/3, \S*/4, \S*/5, \S*/6, \S*/7; for"):
        load(tmp_path / "all")


def test_hidden_folders_are_not_named(tmp_path, pipeline):
    shutil.copytree(pipeline, tmp_path / "all/.hidden")
    shutil.copytree(pipeline, tmp_path / "all/seen")
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path / "all")
    hint = str(error.value).partition("These can be opened")[2]
    assert "seen" in hint and ".hidden" not in hint


def test_an_address_of_the_hub():
    with pytest.raises(FileNotFoundError, match="The id in this address is google/ddpm-cat-256"):
        load("https://huggingface.co/google/ddpm-cat-256/tree/main")


class TestTheHubsCache:
    @pytest.fixture
    def repository(self, tmp_path, params):
        root = tmp_path / "hub/models--owner--name"
        write_flat(root / "snapshots/aaa", params)
        (root / "refs").mkdir()
        (root / "refs/main").write_text("aaa")
        return root

    def test_opens_what_main_stands_for(self, repository, params):
        assert equal(load(repository), load(repository / "snapshots/aaa"))
        where = locate(repository)
        assert where.source == {"model": "owner/name", "revision": "aaa"}
        write_flat(repository / "snapshots/bbb", params)
        assert locate(repository).folder.name == "aaa"
        (repository / "refs/main").write_text("bbb\n")
        assert locate(repository).folder.name == "bbb"
        (repository / "refs/main").unlink()
        with pytest.raises(FileNotFoundError, match="It has aaa, bbb: name one of them, or load .* by its id"):
            load(repository)

    def test_the_only_snapshot(self, repository):
        shutil.rmtree(repository / "refs")
        assert locate(repository).folder.name == "aaa"

    def test_a_part_of_it(self, repository, params):
        write_flat(repository / "snapshots/aaa/inner", params)
        assert locate(repository, subfolder="inner").folder == repository / "snapshots/aaa/inner"

    @pytest.mark.parametrize("named, opens", [("..", ""), ("refs", ""), ("snapshots", "snapshots/aaa")])
    def test_folders_around_it(self, repository, named, opens):
        with pytest.raises(FileNotFoundError, match=f"can be opened: \\S*{(repository / opens).name}; for example"):
            load((repository / named).resolve())


@pytest.mark.parametrize("option", [{"token": "x"}, {"token": True}, {"cache_dir": "x"}, {"local_files_only": True}])
def test_options_of_the_hub_for_a_folder(pipeline, option):
    (name,) = option
    for source in (pipeline, "digits-16", None):
        with pytest.raises(ValueError, match=f"`{name}` is for the hub, but .* is a folder on this machine"):
            load(source, **option)
