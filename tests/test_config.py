"""Configs: diffusers' JSON in and out, old names, and every refusal's message."""

import json

import pytest
from conftest import NCSNPP, PLAIN

from ddpm_jax.config import (
    Config,
    SamplerConfig,
    ScheduleConfig,
    UNetConfig,
    scheduler_from_dict,
    scheduler_to_dict,
)


def test_round_trip_through_json():
    for items in (PLAIN, NCSNPP, PLAIN | {"sample_size": (16, 24)}):
        config = UNetConfig(**items)
        again = UNetConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config and hash(again) == hash(config)


def test_old_names_are_brought_up_to_date():
    old = {
        "image_size": 16,
        "num_res_blocks": 1,
        "block_channels": [32, 64],
        "down_blocks": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
        "up_blocks": ["UNetResAttnUpBlock2D", "UNetResUpBlock2D"],
        "downscale_freq_shift": 1,
        "resnet_num_groups": 8,
        "resnet_act_fn": "Swish",
        "resnet_eps": 1e-6,
        "num_head_channels": 4,
    }
    changes = {"freq_shift": 1, "act_fn": "swish", "norm_eps": 1e-6, "attention_head_dim": 4}
    assert UNetConfig.from_dict(old) == UNetConfig(**(PLAIN | changes))


def test_hidden_and_ema_keys_are_ignored(recwarn):
    """Those that `EMAModel.save_pretrained` of diffusers 0.42.1 writes."""
    extra = {
        **{"_class_name": "UNet2DModel", "_name_or_path": "x", "decay": 0.9999, "inv_gamma": 1.0, "power": 0.75},
        **{"min_decay": 0.1, "optimization_step": 7, "update_after_step": 3, "use_ema_warmup": True},
    }
    assert UNetConfig.from_dict(PLAIN | extra) == UNetConfig(**PLAIN)
    assert not recwarn.list


def test_what_follows_from_the_fields():
    """diffusers 0.42.1: the defaults inside UNet2DModel and its blocks."""
    assert UNetConfig(**PLAIN).time_embed_dim == 4 * 32
    assert UNetConfig(**PLAIN, time_embedding_dim=48).time_embed_dim == 48
    assert UNetConfig(**PLAIN).head_dim(64) == 8 and UNetConfig(**PLAIN, attention_head_dim=None).head_dim(64) == 64
    skips = {"down_block_types": ("SkipDownBlock2D",) * 2, "up_block_types": ("SkipUpBlock2D",) * 2}
    none = UNetConfig(**(PLAIN | skips | {"norm_num_groups": None}))
    assert [none.groups(channels) for channels in (32, 128, 256)] == [8, 32, 32]
    assert UNetConfig(**PLAIN).groups(256) == 8
    assert UNetConfig(**PLAIN).smallest_size == 2 and UNetConfig().smallest_size == 8
    assert UNetConfig(**PLAIN).image_size == (16, 16) and UNetConfig().image_size is None


@pytest.mark.parametrize(
    "blocks",
    [
        {"down_block_types": ("DownBlock2D", "SkipDownBlock2D")},  # the last level halves nothing
        {"up_block_types": ("UpBlock2D", "SkipUpBlock2D")},
        {"down_block_types": ("DownBlock2D", "SkipDownBlock2D"), "in_channels": 1, "out_channels": 1},
        {"up_block_types": ("UpBlock2D", "SkipUpBlock2D"), "in_channels": 1, "out_channels": 1},
    ],
)
def test_skip_blocks_that_resample_nothing_go_anywhere(blocks):
    UNetConfig(**(PLAIN | blocks))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"block_out_chanels": (32,)}, "no field `block_out_chanels`. Did you mean `block_out_channels`"),
        ({"down_block_types": ("DownBlock2D", "AtnDownBlock2D")}, "'AtnDownBlock2D'.*Did you mean `AttnDownBlock2D`"),
        ({"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}, "no block of UNet2DModel"),
        ({"block_out_channels": (32, 64, 64)}, "has 3 entries but `down_block_types` has 2.*one entry for each level"),
        ({"up_block_types": ("UpBlock2D",)}, "`up_block_types` has 1"),
        ({"norm_num_groups": 12}, "`norm_num_groups` 12 does not divide the (32|64) channels"),
        ({"norm_num_groups": 12, "mid_block_type": None}, "does not divide the (32|64) channels of a level"),
        ({"norm_num_groups": 16, "block_out_channels": (32, 40)}, "does not divide the 40 channels of a level"),
        ({"freq_shift": "1"}, "`freq_shift` must be a number"),
        ({"norm_num_groups": None}, "only the skip blocks allow"),
        ({"attn_norm_num_groups": 12}, "`attn_norm_num_groups` 12 does not divide"),
        ({"attention_head_dim": 128}, "there would be no head. Take at most 64, or null"),
        ({"attention_head_dim": [8, 8]}, "`attention_head_dim` must be a positive integer or null"),
        ({"block_out_channels": 32}, "`block_out_channels` must be positive integers"),
        ({"layers_per_block": 0}, "`layers_per_block` must be a positive integer"),
        ({"layers_per_block": [2, 2]}, "`layers_per_block` must be a positive integer"),
        ({"sample_size": "16"}, "`sample_size` must be an integer"),
        ({"time_embedding_type": "sinusoidal"}, "`time_embedding_type` must be one of"),
        ({"time_embedding_type": "learned"}, "needs `num_train_timesteps`"),
        ({"freq_shift": 16}, "divides by zero"),
        ({"act_fn": "tanh"}, "`act_fn` must be one of"),
        ({"resnet_time_scale_shift": "ada_group"}, "`resnet_time_scale_shift` must be one of"),
        ({"downsample_type": "fir"}, "`downsample_type` must be one of"),
        ({"downsample_padding": 2}, "`downsample_padding` must be one of"),
        ({"downsample_padding": True}, "`downsample_padding` must be one of"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"norm_eps": 0}, "`norm_eps` must be a positive number"),
        ({"mid_block_type": "foo"}, "`mid_block_type` must be UNetMidBlock2D or null"),
        ({"class_embed_type": "projection"}, "`class_embed_type` must be one of"),
        ({"center_input_sample": "yes"}, "`center_input_sample` must be true or false"),
        (
            {"down_block_types": ("DownBlock2D", "SkipDownBlock2D", "DownBlock2D"), "block_out_channels": (32,) * 3}
            | {"up_block_types": ("UpBlock2D",) * 3},
            "Put the skip blocks first",
        ),
        ({"up_block_types": ("SkipUpBlock2D", "UpBlock2D")}, "Put the skip blocks last"),
        ({"down_block_types": ("SkipDownBlock2D", "DownBlock2D"), "in_channels": 1}, "needs `in_channels` 3"),
        ({"up_block_types": ("SkipUpBlock2D", "SkipUpBlock2D"), "out_channels": 1}, "needs `out_channels` 3"),
        ({"up_block_types": ("UpBlock2D", "AttnSkipUpBlock2D"), "block_out_channels": (40, 64)}, "32 groups"),
    ],
)
def test_bad_unet_configs(changes, message, untyped):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(PLAIN | changes)


@pytest.mark.parametrize(
    "extra",
    [
        {"cross_attention_dim": None, "encoder_hid_dim": None, "addition_embed_type": None},
        {
            "only_cross_attention": False,
            "conv_in_kernel": 3,
            "attention_type": "default",
            "resnet_out_scale_factor": 1.0,
        },
        {"architectures": [], "id2label": {}, "note": "", "layer_per_block": None},
    ],
)
def test_keys_that_ask_for_nothing_pass(extra, recwarn):
    assert UNetConfig.from_dict(PLAIN | extra) == UNetConfig(**PLAIN)
    assert not recwarn.list


@pytest.mark.parametrize(
    "extra",
    [
        {"torch_dtype": "float16", "dtype": "float32"},
        {"notes": {"author": "me", "data": ["a", "b"]}},
        {"architectures": ["UNet2DModel"], "model_type": "unet", "transformers_version": "4.0", "num_params": 12},
        {"num_channels": 3, "in_channels": 3, "out_channels": 3},  # no misspelling of a field that is there
    ],
)
def test_descriptive_keys_pass_with_a_warning(extra):
    names = ", ".join(f"`{name}`" for name in extra if name not in PLAIN | {"in_channels": 3, "out_channels": 3})
    with pytest.warns(UserWarning, match=f"UNet2DModel has no field {names}: ignored"):
        assert UNetConfig.from_dict(PLAIN | extra) == UNetConfig(**PLAIN)


@pytest.mark.parametrize(
    "items, message",
    [
        (
            {"layer_per_block": 1},
            "no field `layer_per_block`. Did you mean `layers_per_block`.*take it out of the file",
        ),
        ({"num_classes": 10}, "Did you mean `num_class_embeds`"),
        (
            {"cross_attention_dim": 768},
            "`cross_attention_dim` 768 is a field of UNet2DConditionModel.*take the key out",
        ),
        ({"upcast_attention": True}, "is a field of UNet2DConditionModel"),
        ({"add_atention": False}, "Did you mean `add_attention`"),
        ({"conv_in_kernel": 1}, "is a field of UNet2DConditionModel"),
    ],
)
def test_keys_that_were_meant_to_act_are_refused(items, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(PLAIN | items)


@pytest.mark.parametrize(
    "size, message",
    [
        (28, "`sample_size` 28 cannot be halved 3 times.*multiples of 8. Draw at 24 or 32 instead"),
        ((28, 32), r"`sample_size` \(28, 32\) cannot be.*Draw at \(24, 32\) or 32 instead"),
        (4, "multiples of 8. Draw at 8 instead"),
        (None, "has no `sample_size`"),
    ],
)
def test_sizes_that_cannot_be_drawn(size, message):
    """The network is what it is: its config says no more than which images its owner drew."""
    config = UNetConfig(sample_size=size)
    with pytest.raises(ValueError, match=message):
        config.check_size()
    assert config.check_size((32, 64)) == (32, 64)
    assert UNetConfig(sample_size=(16, 24)).check_size() == (16, 24)


def test_unknown_dtype():
    with pytest.raises(ValueError, match="`dtype` must be one of"):
        UNetConfig(**PLAIN, dtype="float16")


def test_scheduler_config_splits_into_schedule_and_sampler():
    items = {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": "0.1.1",
        "beta_end": 0.01,
        "clip_sample": True,
        "num_train_timesteps": 500,
        "trained_betas": None,
        "variance_type": "fixed_large",
        "timestep_values": None,
        "skip_prk_steps": True,
    }
    schedule, sampler = scheduler_from_dict(items)
    assert schedule == ScheduleConfig(beta_end=0.01, num_train_timesteps=500)
    assert sampler.class_name == "DDPMScheduler"
    assert sampler.to_dict() == {
        **{"clip_sample": True, "skip_prk_steps": True},
        **{"timestep_values": None, "variance_type": "fixed_large"},
    }
    assert scheduler_from_dict(scheduler_to_dict(schedule, sampler)) == (schedule, sampler)


@pytest.mark.parametrize(
    "name, expected",
    [
        # diffusers 0.42.1, the signatures of the constructors
        ("UnCLIPScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("KDPM2DiscreteScheduler", {"beta_start": 0.00085, "beta_end": 0.012}),
        ("KDPM2AncestralDiscreteScheduler", {"beta_start": 0.00085, "beta_end": 0.012}),
        ("LCMScheduler", {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
        ("TCDScheduler", {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}),
        ("ScoreSdeVeScheduler", {"kind": "ve", "num_train_timesteps": 2000, "sigma_min": 0.01, "sigma_max": 1348.0}),
        ("KarrasVeScheduler", {"kind": "ve", "sigma_min": 0.01, "sigma_max": 50.0}),  # half of 0.02 and 100
        ("DDIMScheduler", {}),
        ("LMSDiscreteScheduler", {}),
    ],
)
def test_defaults_of_a_class(name, expected):
    assert scheduler_from_dict({"_class_name": name})[0] == ScheduleConfig(**expected)


@pytest.mark.parametrize("name, knows", [("DDPMScheduler", True), ("TCDScheduler", True), ("PNDMScheduler", False)])
def test_zero_terminal_snr_is_written_where_the_class_knows_it(name, knows):
    for flag in (False, True):
        schedule = ScheduleConfig(rescale_betas_zero_snr=flag)
        items = scheduler_to_dict(schedule, SamplerConfig(name))
        assert items.get("rescale_betas_zero_snr") == (flag if knows or flag else None)
        assert scheduler_from_dict(items)[0] == schedule


def test_given_values_win_over_the_defaults_of_the_class():
    late, _ = scheduler_from_dict({"_class_name": "HeunDiscreteScheduler"})
    assert (late.beta_start, late.beta_end) == (0.00085, 0.012)
    given, _ = scheduler_from_dict({"_class_name": "HeunDiscreteScheduler", "beta_end": 0.02})
    assert (given.beta_start, given.beta_end) == (0.00085, 0.02)


def test_noise_levels_of_karras_ve_are_those_of_data_in_minus_one_to_one():
    """The network of a "ve" schedule sees data in [0, 1]: half as large, and half the noise."""
    items = {"_class_name": "KarrasVeScheduler", "sigma_min": 0.02, "sigma_max": 100.0}
    schedule, sampler = scheduler_from_dict(items)
    assert (schedule.sigma_min, schedule.sigma_max) == (0.01, 50.0)
    assert scheduler_to_dict(schedule, sampler).items() >= items.items()


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "VeSdeScheduler"])
def test_variance_exploding_schedules(name):
    items = {"_class_name": name, "sigma_min": 0.01, "sigma_max": 380.0, "snr": 0.075, "correct_steps": 1}
    schedule, sampler = scheduler_from_dict(items)
    assert schedule == ScheduleConfig(kind="ve", num_train_timesteps=2000, sigma_min=0.01, sigma_max=380.0)
    assert sampler.class_name == "ScoreSdeVeScheduler"  # its name of today, which diffusers opens
    assert sampler.to_dict() == {"correct_steps": 1, "snr": 0.075}
    assert scheduler_from_dict(scheduler_to_dict(schedule, sampler)) == (schedule, sampler)


def test_names_of_diffusers_0_0():
    schedule, sampler = scheduler_from_dict({"timesteps": 300, "clip_predicted_image": False})
    assert schedule == ScheduleConfig(num_train_timesteps=300) and sampler.to_dict() == {"clip_sample": False}


def test_predict_epsilon_of_old_versions():
    assert scheduler_from_dict({"predict_epsilon": False})[0].prediction_type == "sample"
    assert scheduler_from_dict({"predict_epsilon": True})[0].prediction_type == "epsilon"


@pytest.mark.parametrize(
    "items, message",
    [
        ({"beta_strat": 0.1}, "has no field `beta_strat`. Did you mean `beta_start`"),
        ({"clip_smaple": False}, "Did you mean `clip_sample`"),
        ({"clip_sampel_range": 2.0}, "Did you mean `clip_sample_range`"),
        ({"beta_schedule": "cosine"}, "`beta_schedule` 'cosine' is unknown"),
        ({"beta_start": -1}, r"`beta_start` must be in \(0, 1\]"),
        ({"beta_end": 1.5}, r"`beta_end` must be in \(0, 1\], not 1.5"),
        ({"trained_betas": [0.1, 1.5], "num_train_timesteps": 2}, r"`trained_betas` must be numbers in \(0, 1\]"),
        ({"trained_betas": [0.0], "num_train_timesteps": 1}, r"`trained_betas` must be numbers in \(0, 1\]"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 5.0, "sigma_max": 5.0}, "`sigma_max` above it"),
        ({"num_train_timesteps": 0}, "`num_train_timesteps` must be a positive integer"),
        ({"prediction_type": "noise"}, "`prediction_type` must be one of"),
        ({"trained_betas": [0.1, 0.2]}, "`trained_betas` has 2 entries but `num_train_timesteps` is 1000"),
        ({"trained_betas": ["a"], "num_train_timesteps": 1}, "`trained_betas` must be numbers"),
        ({"rescale_betas_zero_snr": 1}, "`rescale_betas_zero_snr` must be true or false"),
        (
            {"_class_name": "ScoreSdeVeScheduler", "sigma_max": 0.001},
            "`sigma_max` above it, not 0.01 and 0.001",
        ),
    ],
)
def test_bad_scheduler_configs(items, message, untyped):
    with pytest.raises(ValueError, match=message):
        scheduler_from_dict(items)


def test_foreign_keys_of_a_scheduler(recwarn):
    plain = {"_class_name": "DDPMScheduler", "clip_sample": True}
    assert scheduler_from_dict(plain | {"a_later_knob": None, "another": []}) == scheduler_from_dict(plain)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="A scheduler has no field `notes`, `a_later_knob`: ignored"):
        assert scheduler_from_dict(plain | {"notes": "x", "a_later_knob": 3}) == scheduler_from_dict(plain)


def test_unknown_kind():
    with pytest.raises(ValueError, match="`kind` must be"):
        ScheduleConfig(kind="sub-vp")
    with pytest.raises(ValueError, match='are for `kind` "ve"'):
        ScheduleConfig(sigma_min=0.1)
    with pytest.raises(ValueError, match="`kind` 'vp' has no `sigma_min` and `sigma_max`"):
        _ = ScheduleConfig().sigma_range


@pytest.mark.parametrize(
    "name", ["CMStochasticIterativeScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"]
)
def test_other_processes_are_not_taken_for_ddpm(name):
    items = {"_class_name": name, "num_train_timesteps": 40}
    schedule, sampler = scheduler_from_dict(items)
    assert schedule == ScheduleConfig(kind="other", num_train_timesteps=40) and sampler.class_name == name
    assert scheduler_from_dict(scheduler_to_dict(schedule, sampler)) == (schedule, sampler)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_names": ("a", "b", "c", "d")}, "has 4 names; the network has 3 classes"),
        ({"class_names": ("a", "a")}, "holds a name twice"),
        ({"class_names": (1, 2)}, "must be a list of strings"),
        ({"null_class": 3}, "must be one of the network's 3 classes or None, not 3"),
        ({"null_class": -1}, "not -1"),
    ],
)
def test_names_that_do_not_fit_the_classes(changes, message, untyped):
    unet = UNetConfig(**PLAIN, num_class_embeds=3)
    with pytest.raises(ValueError, match=message):
        Config(unet, **changes)
    with pytest.raises(ValueError, match="the network has 0 classes|network's 0 classes"):
        Config(UNetConfig(**PLAIN), **{"class_names": ("a",)} if "class_names" in changes else {"null_class": 0})


@pytest.mark.parametrize(
    "changes, classes",
    [
        ({}, 0),
        ({"num_class_embeds": 3}, 3),
        ({"class_embed_type": "identity"}, 0),
        ({"class_embed_type": "timestep", "num_class_embeds": 3}, 0),  # diffusers builds no table then
    ],
)
def test_rows_of_the_table_of_classes(changes, classes):
    config = UNetConfig(**PLAIN, **changes)
    assert config.num_classes == classes and config.has_classes == bool(changes)


def test_the_class_that_label_dropout_takes():
    unet = UNetConfig(**PLAIN, num_class_embeds=3)
    assert Config(unet).dropped_class == 2
    assert [Config(unet, null_class=null).dropped_class for null in (0, 1, 2)] == [0, 1, 2]


@pytest.mark.parametrize("channels, learned", [((1, 1), False), ((1, 2), True), ((3, 3), False), ((3, 6), True)])
def test_networks_that_learn_a_variance(channels, learned):
    config = UNetConfig(**PLAIN, in_channels=channels[0], out_channels=channels[1])
    config.check_prediction()
    assert config.learns_variance == learned


@pytest.mark.parametrize("channels", [(1, 3), (3, 1), (3, 9), (2, 3)])
def test_outputs_that_are_no_prediction(channels):
    config = UNetConfig(**PLAIN, in_channels=channels[0], out_channels=channels[1])
    with pytest.raises(ValueError, match=f"{channels[1]} output channels are no prediction for the {channels[0]} of"):
        config.check_prediction()


def test_the_scale_of_the_data():
    assert ScheduleConfig().data_range == (-1, 1)
    assert ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0).data_range == (0, 1)
