"""Settings that are known to work, by name.

`cifar10`, `lsun-256` and `celebahq-256` are those of Ho et al. 2020 (appendix B and their code). Two details differ on
purpose. TensorFlow 1's Adam adds epsilon before its bias correction, optax after it; only the first steps show it.
Their gradients were clipped to norm 1 on each TPU core and then averaged; here the average is clipped.
"""

import dataclasses
from pathlib import Path

from ddpm_jax.losses import Objective
from ddpm_jax.training.settings import (
    OF_THE_NETWORK,
    OF_THE_SCHEDULE,
    DataConfig,
    EmaConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

_PAPER_EMA = EmaConfig(ema_decay=0.9999, ema_power=0.0)
_PAPER_256 = ModelConfig(channels=128, channel_multipliers=(1, 1, 2, 2, 4, 4), attention_resolutions=(16,))
_PAPER_256_OPTIMIZER = OptimizerConfig(learning_rate=2e-5, warmup_steps=5000)

PRESETS = {
    # 35,746,307 parameters; FID 3.17 to the training set, 5.24 to the test set, 10.6 hours on a TPU v3-8
    "cifar10": TrainConfig(
        data=DataConfig(data="", resolution=32, flip=True),
        model=ModelConfig(channels=128, channel_multipliers=(1, 2, 2, 2), attention_resolutions=(16,), dropout=0.1),
        objective=Objective(variance_type="fixed_large"),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=5000),
        ema=_PAPER_EMA,
        loop=LoopConfig(batch_size=128, steps=800_000, save_every=5000, sample_every=25_000),
    ),
    # 113,673,219 parameters; FID 7.89 for churches (1.2 million steps), 19.75 for cats (1.8), 6.36 for bedrooms
    # (2.4, with flip=False)
    "lsun-256": TrainConfig(
        data=DataConfig(data="", resolution=256, flip=True),
        model=_PAPER_256,
        optimizer=_PAPER_256_OPTIMIZER,
        ema=_PAPER_EMA,
        loop=LoopConfig(batch_size=64, steps=1_200_000, save_every=5000, sample_every=25_000),
    ),
    # the same network; half a million steps, no FID published
    "celebahq-256": TrainConfig(
        data=DataConfig(data="", resolution=256, flip=True),
        model=_PAPER_256,
        optimizer=_PAPER_256_OPTIMIZER,
        ema=_PAPER_EMA,
        loop=LoopConfig(batch_size=64, steps=500_000, save_every=5000, sample_every=25_000),
    ),
    # fine-tune any checkpoint (`init`, which brings the network and its resolution) on other images
    "fine-tune": TrainConfig(
        data=DataConfig(data="", flip=True),
        optimizer=OptimizerConfig(optimizer="adamw", learning_rate=2e-5, warmup_steps=500, weight_decay=0.01),
        ema=EmaConfig(ema_decay=0.9995),
        loop=LoopConfig(batch_size=16, steps=20_000, save_every=500, sample_every=2500),
    ),
    # for CPUs, in hours: 3,940,547 parameters. The learning rate is constant, so the run can be stopped at any step
    "small-32": TrainConfig(
        data=DataConfig(data="", resolution=32, flip=True, crop="random_resized"),
        model=ModelConfig(
            channels=32,
            channel_multipliers=(1, 2, 4),
            attention_resolutions=(8,),
            norm_num_groups=16,
            prediction_type="v_prediction",
            beta_schedule="squaredcos_cap_v2",
        ),
        objective=Objective(weighting="min_snr"),
        optimizer=OptimizerConfig(optimizer="adamw", learning_rate=4e-4, warmup_steps=500, weight_decay=0.01),
        ema=EmaConfig(ema_decay=0.9995),
        loop=LoopConfig(batch_size=32, steps=40_000, save_every=500, log_every=50, sample_every=2500),
    ),
    # for CPUs, in minutes: 1.1 million parameters
    "tiny-16": TrainConfig(
        data=DataConfig(data="", resolution=16, flip=False),
        model=ModelConfig(channels=32, channel_multipliers=(1, 2, 2), attention_resolutions=(8,)),
        optimizer=OptimizerConfig(learning_rate=1e-3, lr_schedule="cosine", warmup_steps=100),
        ema=EmaConfig(ema_decay=0.999),
        loop=LoopConfig(batch_size=64, steps=1600, save_every=200, log_every=25, sample_every=400),
    ),
}


def for_network(preset: TrainConfig, *, init: str | None = None, model_config: Path | None = None) -> TrainConfig:
    """Return a preset for the network of a checkpoint or of a config.json, which brings what the preset would say.

    Args:
        preset: any settings.
        init: `ModelConfig.init`.
        model_config: `ModelConfig.model_config`.

    Example:
        >>> config = for_network(PRESETS["small-32"], init="google/ddpm-cat-256")
        >>> config.model.channels, config.data.resolution, config.optimizer.learning_rate
        (None, None, 0.0004)
    """
    brought = (*OF_THE_NETWORK, *OF_THE_SCHEDULE) if init is not None else OF_THE_NETWORK
    model = dataclasses.replace(preset.model, **dict.fromkeys(brought), **{"init": init, "model_config": model_config})
    data, objective = dataclasses.replace(preset.data, resolution=None), preset.objective
    if init is not None:
        objective = dataclasses.replace(objective, variance_type=Objective().variance_type)
    return dataclasses.replace(preset, data=data, model=model, objective=objective)


def at_resolution(preset: TrainConfig, resolution: int) -> TrainConfig:
    """Return a preset for images of another size, with attention at the same levels of the network.

    Example:
        >>> at_resolution(PRESETS["cifar10"], 64).model.attention_resolutions
        (32,)
    """
    model, before = preset.model, preset.data.resolution
    if before is not None and model.attention_resolutions is not None:
        sides = tuple(side * resolution // before for side in model.attention_resolutions)
        model = dataclasses.replace(model, attention_resolutions=sides)
    return dataclasses.replace(preset, model=model, data=dataclasses.replace(preset.data, resolution=resolution))
