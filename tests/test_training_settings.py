"""Every setting of a training run acts or is refused: changed, it changes the network, the program, data or a file.

Whether it changes them in the right way is what the other files test.
"""

import dataclasses
import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import small_params
from PIL import Image

import ddpm_jax
from ddpm_jax import sharding
from ddpm_jax.images.source import open_source
from ddpm_jax.losses import check_objective
from ddpm_jax.reverse import LEARNED
from ddpm_jax.training import DataConfig, LoopConfig, ModelConfig, OptimizerConfig, TrainConfig, logs, loop, train
from ddpm_jax.training.checks import check_batch, check_new_run
from ddpm_jax.training.data import Batches, open_data
from ddpm_jax.training.network import network, new_network
from ddpm_jax.training.run_folder import changes, facts
from ddpm_jax.training.step import Metrics, Plan, abstract, train_step

TINY = ModelConfig(
    channels=8, channel_multipliers=(1,), layers_per_block=1, attention_resolutions=(), norm_num_groups=4
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of two classes, one transparent; the same with a broken file; a network; other images."""
    folder, generator = tmp_path_factory.mktemp("settings"), np.random.default_rng(0)
    for place in ("photos", "broken"):
        for number in range(4):
            path = folder / place / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = "RGBA" if number == 3 else "RGB"
            Image.fromarray(generator.integers(0, 256, (12, 20, len(mode)), np.uint8)).save(path)
    (folder / "broken/a/9.png").write_text("no image")
    ddpm_jax.save(small_params(), folder / "model")
    (folder / "network.json").write_text(json.dumps(small_params().config.unet.to_dict()))
    np.save(folder / "images.npy", generator.integers(0, 256, (9, 8, 8, 1), np.uint8))
    return folder


def remembered(effect):
    """Compute an effect once for each config: many cases share one."""
    return functools.cache(effect)


@remembered
def built(config, folder):
    """The network and the schedule."""
    if config.model.init is None:
        return network(config, 16, 1)
    return new_network(config, open_source("digits"))[0]


@remembered
def program(config, folder):
    """The program of a step: its jaxpr and constants, for a tiny network."""
    check_new_run(config)
    check_batch(config, 1)
    classes = ("a", "b") if config.data.class_conditional else ()
    smaller = not classes and config.objective.variance_type not in LEARNED  # a network without a middle block
    model = ModelConfig(model_config=folder / "network.json") if smaller else TINY
    config = dataclasses.replace(config, model=model)
    plan = Plan(network(config, 8, 1, classes), config)
    check_objective(plan.network, config.objective)
    state = abstract(plan, sharding.data_mesh())
    images = jax.ShapeDtypeStruct((8, 8, 8, 1), jnp.uint8)
    labels = jax.ShapeDtypeStruct((8,), jnp.int32) if classes else None
    jaxpr = jax.make_jaxpr(functools.partial(train_step, plan, None))(state, images, labels)
    constants = [np.asarray(leaf).tolist() for leaf in jaxpr.consts]
    return plan.network, str(jaxpr), constants


def placed(config, folder):
    """The shardings of a state, some of whose arrays are large enough to be split."""
    config = dataclasses.replace(config, model=dataclasses.replace(TINY, channels=32))
    state = abstract(Plan(network(config, 8, 1), config), sharding.data_mesh())
    return [leaf.sharding.spec for leaf in jax.tree.leaves(state)]


@remembered
def served(config, folder):
    """The first batch, and its classes."""
    source = open_data(config.data, out=folder / "run")
    loop, side = config.loop, config.data.resolution or 8
    batches = Batches(source, config.data, side, batch_size=loop.batch_size, seed=loop.seed)
    images, labels = batches(0)
    return images.shape, images.tobytes(), None if labels is None else labels.tolist()


def continued(config, folder):
    """The message of a resumed run about data that has changed."""
    source = open_data(config.data, out=folder / "run")
    return changes(source, facts(source) | {"fingerprint": ""}, folder, accepted=config.data.accept_changed_data)


def threads(config, folder):
    """The number of threads that read batches."""
    import grain

    asked = []
    options = grain.ReadOptions
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            grain, "ReadOptions", lambda **kwargs: (asked.append(kwargs["num_threads"]), options(**kwargs))[1]
        )
        source = open_data(config.data, out=folder / "run")
        next(Batches(source, config.data, 8, batch_size=2, seed=0).own(0, 1))
    return asked


@remembered
def files(config, folder):
    """The folder of a run: names, log lines, pictures. Its step only counts."""
    config = dataclasses.replace(config, model=ModelConfig(init=str(folder / "model")))
    nothing = Metrics(*(np.float32(1) for _ in range(3)), np.ones(4, np.float32), np.ones(4, np.float32))
    step = lambda state, images, labels: (state.replace(step=state.step + 1), nothing)
    out = folder / f"run {len(list(folder.iterdir()))}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "compiled", lambda plan, state, mesh: step)
        patch.setattr(logs, "draw_curve", lambda folder: None)
        train(config, out)
    names = {path.relative_to(out).as_posix().split("events")[0] for path in out.rglob("*") if "ocdbt" not in str(path)}
    names = {name for name in names if name.count("/") < 2}
    timings = ("steps_per_second", "images_per_second")
    lines = [{name: value for name, value in line.items() if name not in timings} for line in logs.read(out)]
    pictures = {path.name: np.asarray(Image.open(path)).tolist() for path in out.glob("samples/*.png")}
    return sorted(names), lines, pictures


class Case(NamedTuple):
    """A value that is not the default, what it changes, and other settings (group -> field -> value) beside it.

    With `alone`, the value must act, or be refused by name, without those other settings too.
    """

    value: Any
    effect: Any
    beside: dict[str, dict[str, Any]] = {}
    alone: bool = True


def photos(value, effect=served, place="photos", **others):
    """Make a case on a folder of pictures; `config_of` completes its path."""
    return Case(value, effect, {"data": {"data": place, "flip": False, **others}}, alone=False)


RUN = {"steps": 4, "batch_size": 2, "save_every": 2, "log_every": 2, "sample_every": 0}


def running(value, **others):
    return Case(value, files, {"loop": RUN | others}, alone=False)


SAMPLES = {"sample_every": 4, "num_samples": 1, "sample_evals": 1}
CASES = {
    "data": {
        "data": Case("photos", served),
        "held_out": Case("images.npy", files, {"data": {"data": "images.npy"}, "loop": RUN}, alone=False),
        "resolution": photos(4),
        "image_channels": photos(1),
        "background": photos("black"),
        "crop": photos("random_resized"),
        "min_crop": Case(0.1, served, {"data": {"data": "photos", "flip": False, "crop": "random_resized"}}),
        "flip": Case(False, served),
        "class_conditional": photos(True),
        "skip_broken": photos(True, place="broken"),
        "accept_changed_data": photos(True, continued),
        "workers": Case(3, threads),
    },
    "model": {
        "init": Case("digits-16", built),
        "model_config": Case("network.json", built),
        "dropout": Case(0.3, built),
        "channels": Case(64, built),
        "channel_multipliers": Case((1, 2), built),
        "layers_per_block": Case(1, built),
        "attention_resolutions": Case((), built),
        "attention_head_dim": Case(8, built),
        "norm_num_groups": Case(16, built),
        "prediction_type": Case("v_prediction", built),
        "beta_schedule": Case("scaled_linear", built),
        "num_train_timesteps": Case(500, built),
    },
    "objective": {
        "loss_type": Case("vlb", program),
        "weighting": Case("snr", program),
        "variance_type": Case("fixed_large", program, {"objective": {"loss_type": "vlb"}}),
        "timestep_sampling": Case("antithetic", program),
        "vlb_weight": Case(0.1, program, {"objective": {"loss_type": "hybrid", "variance_type": "learned_range"}}),
        "min_snr_gamma": Case(4.0, program, {"objective": {"weighting": "min_snr"}}),
        "p2_gamma": Case(2.0, program, {"objective": {"weighting": "p2"}}),
        "p2_k": Case(2.0, program, {"objective": {"weighting": "p2"}}),
        "label_dropout": Case(0.5, program, {"data": {"class_conditional": True}}),
    },
    "optimizer": {
        # with no weight decay it is Adam
        "optimizer": Case("adamw", program, {"optimizer": {"weight_decay": 0.1}}, alone=False),
        "learning_rate": Case(1e-3, program),
        "lr_schedule": Case("cosine", program),
        "warmup_steps": Case(7, program),
        "adam_b1": Case(0.8, program),
        "adam_b2": Case(0.9, program),
        "adam_eps": Case(1e-3, program),
        "weight_decay": Case(0.1, program, {"optimizer": {"optimizer": "adamw"}}),
        "clip_norm": Case(2.0, program),
        "accumulate": Case(2, program),
    },
    "ema": {
        "ema_decay": Case(0.9, program),
        "ema_power": Case(0.5, program),
        "ema_inv_gamma": Case(2.0, program),
        "power_ema": Case((0.1,), program),
        "snapshot_every": Case(3, files, {"ema": {"power_ema": (0.1,)}, "loop": RUN}),
    },
    "loop": {
        "batch_size": Case(3, served),
        "seed": Case(1, program),
        "dtype": Case("bfloat16", program),
        "remat": Case(True, program),
        "sharding": Case("fsdp", placed),
        "steps": running(6),
        "save_every": running(3),
        "keep_last": running(1),
        "keep_every": running(1, save_every=1),
        "log_every": running(1),
        "validate_every": Case(2, files, {"data": {"data": "images.npy", "held_out": "images.npy"}, "loop": RUN}),
        "sample_every": running(2, **SAMPLES),
        "num_samples": Case(2, files, {"loop": RUN | SAMPLES}, alone=False),
        "sample_evals": Case(2, files, {"loop": RUN | SAMPLES}, alone=False),
        "tensorboard": running(True),
    },
}
PATHS = ("photos", "broken", "network.json", "images.npy")


def config_of(folder, groups):
    """Make settings from plain values; names of files become paths in the folder."""
    types = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    values = {"data": {"data": "digits"}, "optimizer": {"warmup_steps": 0}} | {
        name: ({"data": "digits"} if name == "data" else {"warmup_steps": 0} if name == "optimizer" else {}) | group
        for name, group in groups.items()
    }

    def placed(name, value):
        if value not in PATHS:
            return value
        return folder / value if name == "model_config" else str(folder / value)

    return TrainConfig(
        **{
            name: types[name](**{key: placed(key, value) for key, value in group.items()})
            for name, group in values.items()
        }
    )


FIELDS = [
    (group.name, field.name) for group in dataclasses.fields(TrainConfig) for field in dataclasses.fields(group.type)
]


@pytest.mark.parametrize("group, field", FIELDS, ids=[".".join(names) for names in FIELDS])
def test_every_setting_acts(group, field, folder):
    """A new setting without a case fails here."""
    case = CASES[group][field]
    changed = lambda groups: groups | {group: groups.get(group, {}) | {field: case.value}}
    effect = lambda groups: case.effect(config_of(folder, groups), folder)
    if case.alone:
        try:
            other = effect(changed({}))
        except ValueError as error:
            assert f"`{field}` " in str(error) and case.beside, error
        else:
            assert other != effect({})
    if case.beside or not case.alone:
        try:
            plain = effect(case.beside)
        except ValueError as error:  # the setting permits something that is refused without it
            assert f"`{field}`" in str(error)
            plain = None
        assert effect(changed(case.beside)) != plain


def test_cases_are_of_settings_that_there_are():
    assert {(group, field) for group, cases in CASES.items() for field in cases} == set(FIELDS)


def test_defaults_are_not_the_values_of_the_cases():
    """A case whose value is the default would show nothing."""
    plain = TrainConfig(data=DataConfig(data="digits"), loop=LoopConfig(), optimizer=OptimizerConfig()).resolved()
    for group, field in FIELDS:
        assert CASES[group][field].value != getattr(getattr(plain, group), field), field
