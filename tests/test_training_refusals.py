"""Settings that are refused, and those of a resumed run compared with its record."""

import dataclasses
from pathlib import Path

import pytest

from ddpm_jax import losses
from ddpm_jax.losses import Objective
from ddpm_jax.training import (
    PRESETS,
    DataConfig,
    EmaConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    train,
)
from ddpm_jax.training.checks import check_batch, check_new_run, differences
from ddpm_jax.training.network import network

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
OF_A_NEW_NETWORK = {
    **{"channels": 7, "channel_multipliers": (1,), "layers_per_block": 1, "attention_resolutions": ()},
    **{"attention_head_dim": 8, "norm_num_groups": 8},
}
OF_A_NEW_SCHEDULE = {"prediction_type": "sample", "beta_schedule": "sigmoid", "num_train_timesteps": 10}


def config(**changes):
    return TrainConfig(
        data=DataConfig(data="digits"),
        **{"optimizer": OPTIMIZER, "loop": LoopConfig(batch_size=8, steps=10), **changes},
    )


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "fine-tune"])
def test_presets_can_be_built(name):
    preset = PRESETS[name]
    built = network(preset, preset.data.resolution, 3)
    losses.check_objective(built, preset.objective)


def test_decaying_rates_fix_the_steps():
    one = config(optimizer=dataclasses.replace(OPTIMIZER, lr_schedule="cosine"))
    other = dataclasses.replace(one, loop=LoopConfig(batch_size=8, steps=20))
    assert differences(one.to_dict(), other) == ["steps 10 there, 20 here (the learning rate is cosine)"]


def test_there_and_back():
    for preset in PRESETS.values():
        assert TrainConfig.from_dict(preset.to_dict()) == preset


def test_what_may_change():
    one = config()
    other = dataclasses.replace(one, loop=LoopConfig(batch_size=8, steps=99, log_every=7, keep_last=5))
    assert differences(one.to_dict(), other) == []
    other = dataclasses.replace(one, loop=LoopConfig(batch_size=8, seed=3), optimizer=OptimizerConfig())
    assert differences(one.to_dict(), other) == [
        "learning_rate 0.001 there, 0.0001 here",
        "warmup_steps 0 there, 500 here",
        "seed 0 there, 3 here",
    ]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LoopConfig(batch_size=0), "`batch_size` must be an integer from 1 up, not 0"),
        (lambda: DataConfig(data="x", min_crop=0.0), "`min_crop` must be a number above 0 and at most 1, not 0.0"),
        (lambda: OptimizerConfig(weight_decay=0.1), "belongs to `optimizer` adamw"),
        (lambda: DataConfig(data="x", min_crop=0.3), "`min_crop` belongs to `crop` random_resized"),
        (lambda: EmaConfig(snapshot_every=5), "`snapshot_every` belongs to `power_ema`"),
        (lambda: config(loop=LoopConfig(validate_every=5)), "`validate_every` belongs to `held_out`"),
        (lambda: Objective(min_snr_gamma=4.0), "`min_snr_gamma` belongs to `weighting` min_snr"),
        (lambda: Objective(vlb_weight=0.1), "`vlb_weight` belongs to `loss_type` hybrid"),
        (lambda: LoopConfig(seed=-1), "`seed` must be an integer from 0 up"),
        (lambda: OptimizerConfig(clip_norm=-1.0), "`clip_norm` must be a number from 0 up"),
        (lambda: EmaConfig(power_ema=(0.5,)), "`power_ema` must be different relative lengths"),
        (
            lambda: check_batch(config(optimizer=OptimizerConfig(accumulate=3)), 2),
            r"`batch_size` 8 does not divide over 2 devices x 3 parts \(`accumulate`\): use 6 or 12",
        ),
        (lambda: network(PRESETS["cifar10"], 36, 3), "`resolution` 36 cannot be halved 3 times: use 32 or 40."),
        (lambda: network(PRESETS["cifar10"], 40, 3), r"`attention_resolutions` \[16\]: the levels have"),
        (lambda: network(PRESETS["tiny-16"], 18, 1), "cannot be halved 2 times"),
        (
            lambda: config(model=ModelConfig(init="m"), objective=Objective(variance_type="fixed_large")),
            "`variance_type` belongs to a run without `init`, which brings its own, or to `loss_type` vlb",
        ),
        (lambda: TrainConfig.from_dict({"data": {"dta": "x"}}), "no field `dta`. Did you mean `data`"),
    ],
)
def test_bad_settings(make, message, untyped):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "group, values",
    [
        (ModelConfig, {"dropout": 1.0, "channels": 0, "channel_multipliers": (), "layers_per_block": 1.5}),
        (ModelConfig, {"attention_resolutions": (0,), "attention_head_dim": 0, "norm_num_groups": -1, "init": ""}),
        (ModelConfig, {"prediction_type": "noise", "beta_schedule": "cosine", "num_train_timesteps": True}),
        (OptimizerConfig, {"optimizer": "sgd", "learning_rate": 0.0, "lr_schedule": "step", "warmup_steps": -1}),
        (OptimizerConfig, {"adam_b1": 2, "adam_b2": 1.0, "adam_eps": 0.0, "clip_norm": float("inf")}),
        (OptimizerConfig, {"learning_rate": float("nan"), "accumulate": 0, "weight_decay": -0.1}),
        (EmaConfig, {"ema_decay": 1.0, "ema_power": -1.0, "ema_inv_gamma": 0.0, "power_ema": (0.1, 0.1)}),
        (EmaConfig, {"ema_decay": "0.9", "snapshot_every": 0}),
        (LoopConfig, {"batch_size": 8.0, "seed": 0.5, "dtype": "float16", "remat": 1, "sharding": "model"}),
        (LoopConfig, {"steps": 0, "save_every": 0, "keep_last": 0, "keep_every": -1, "log_every": 0}),
        (LoopConfig, {"validate_every": 0, "sample_every": -1, "num_samples": 0, "sample_evals": 0}),
        (LoopConfig, {"tensorboard": "yes"}),
        (Objective, {"loss_type": "l2", "weighting": "snr5", "variance_type": "large", "vlb_weight": -1.0}),
        (Objective, {"timestep_sampling": "all", "min_snr_gamma": 0.0, "p2_gamma": float("inf"), "p2_k": 0}),
        (Objective, {"label_dropout": 1.0}),
    ],
)
def test_values_out_of_range(group, values, untyped):
    for name, value in values.items():
        with pytest.raises(ValueError, match=f"`{name}` must be "):
            group(**{name: value})


@pytest.mark.parametrize(
    "group, values, others, belongs",
    [
        (ModelConfig, OF_A_NEW_NETWORK, {"init": "m"}, "a run without `init` and `model_config`, which bring"),
        (ModelConfig, OF_A_NEW_NETWORK, {"model_config": Path("m")}, "a run without `init` and `model_config`"),
        (ModelConfig, OF_A_NEW_SCHEDULE, {"init": "m"}, "a run without `init`, which brings its own"),
        (ModelConfig, {"model_config": Path("n")}, {"init": "m"}, "a run without `init`"),
        (OptimizerConfig, {"weight_decay": 0.1}, {}, "`optimizer` adamw"),
        (EmaConfig, {"ema_inv_gamma": 2.0}, {"ema_power": 0.0}, "`ema_power` above 0"),
        (EmaConfig, {"ema_inv_gamma": 2.0, "ema_power": 0.5}, {"ema_decay": 0.0}, "`ema_(decay|power)` above 0"),
        (EmaConfig, {"snapshot_every": 5}, {}, "`power_ema`"),
        (LoopConfig, {"num_samples": 4, "sample_evals": 5}, {"sample_every": 0}, "`sample_every` above 0"),
        (Objective, {"vlb_weight": 0.1}, {}, "`loss_type` hybrid"),
        (Objective, {"min_snr_gamma": 4.0}, {"weighting": "p2"}, "`weighting` min_snr"),
        (Objective, {"p2_gamma": 2.0, "p2_k": 2.0}, {"weighting": "snr"}, "`weighting` p2"),
        (Objective, {"weighting": "snr"}, {"loss_type": "vlb"}, "`loss_type` simple or hybrid"),
    ],
)
def test_values_that_would_do_nothing(group, values, others, belongs, untyped):
    """They are refused by name, and pass at their defaults."""
    for name, value in values.items():
        with pytest.raises(ValueError, match=f"`{name}` belongs to {belongs}.*would do nothing: leave it out"):
            group(**{name: value} | others)
        group(**{name: getattr(group(), name)} | others)


def test_a_new_run():
    """Some settings are refused only in a new run: runs that older versions began with them are continued."""
    for settings, message in (
        (config(optimizer=OptimizerConfig(warmup_steps=10)), "`warmup_steps` 10 is not below `steps` 10"),
        (config(loop=LoopConfig(seed=2**32, steps=10)), "`seed` must be an integer from 0 to 4294967295"),
        (config(objective=Objective(label_dropout=0.1)), "`label_dropout` is for data with classes"),
    ):
        with pytest.raises(ValueError, match=message):
            check_new_run(settings)
        assert differences(settings.to_dict(), settings) == []
    check_new_run(config(optimizer=OptimizerConfig(warmup_steps=9)))


def test_the_record_of_an_older_version():
    """It may hold settings without effect and lack new ones. Settings that this version does not know are named."""
    here = config(model=ModelConfig(init="m"))
    there = here.to_dict()
    there["model"] |= {"channels": 32, "channel_multipliers": [1, 2], "beta_schedule": "squaredcos_cap_v2"}
    there["objective"]["variance_type"] = "fixed_large"
    there["run"] = there.pop("loop")
    del there["ema"], there["run"]["remat"]
    assert differences(there, here) == [] and TrainConfig.from_dict(there) == here
    there["run"]["quantum"] = True
    assert differences(there, here) == ["quantum True there, unknown to this version"]
    assert differences(config().to_dict(), here) == ["init None there, 'm' here"]


def test_what_is_not_given_is_recorded_with_its_value():
    """A resumed run may then write the value out, and later versions may change it."""
    plain, written = config(), config(model=ModelConfig(channels=128, prediction_type="epsilon"))
    assert plain.resolved().to_dict()["model"] == written.resolved().to_dict()["model"]
    assert plain.resolved().to_dict()["model"]["channel_multipliers"] == (1, 2, 2, 2)
    assert differences(plain.resolved().to_dict(), written) == differences(plain.to_dict(), written) == []
    other = config(model=ModelConfig(channels=64, beta_schedule="scaled_linear"))
    assert differences(plain.resolved().to_dict(), other) == [
        "channels 128 there, 64 here",
        "beta_schedule 'linear' there, 'scaled_linear' here",
    ]
    brought = config(model=ModelConfig(init="m")).resolved()
    assert brought.model == ModelConfig(init="m")


def test_settings_of_version_0_1_that_did_nothing_are_dropped():
    """It accepted them silently, so its records hold them."""
    there = config(ema=EmaConfig(ema_power=0.0)).to_dict()
    there["ema"]["ema_inv_gamma"], there["model"] = 9.0, {"init": "m", "channels": 7, "prediction_type": "sample"}
    there["objective"]["min_snr_gamma"] = 4.0
    assert TrainConfig.from_dict(there) == config(ema=EmaConfig(ema_power=0.0), model=ModelConfig(init="m"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": DataConfig(data="nowhere")}, "`data` nowhere: there is no such folder or file"),
        ({"data": DataConfig(data="digits", held_out="nowhere")}, "`held_out` nowhere: there is no such"),
        ({"data": DataConfig(data="")}, "`data` is missing"),
        ({"model": ModelConfig(init="nowhere")}, "nowhere"),
        ({"model": ModelConfig(model_config=Path("nowhere.json"))}, "nowhere.json"),
    ],
)
def test_inputs_that_do_not_exist(tmp_path, changes, message):
    small = ModelConfig(channel_multipliers=(1,), attention_resolutions=())
    bad = dataclasses.replace(config(model=small), **changes)
    with pytest.raises((ValueError, OSError), match=message):
        train(bad, tmp_path / "run")
    assert not (tmp_path / "run").exists()
