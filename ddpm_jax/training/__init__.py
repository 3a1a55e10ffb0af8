"""Training: `train(config, out)`, its settings, and presets of them.

config = dataclasses.replace(PRESETS["small-32"], data=DataConfig(data="photos/", resolution=32))
params = train(config, "runs/photos")
"""

from ddpm_jax.training.logs import Diverged
from ddpm_jax.training.loop import Stopped, train
from ddpm_jax.training.presets import PRESETS
from ddpm_jax.training.settings import (
    DataConfig,
    EmaConfig,
    LoopConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

__all__ = [
    "PRESETS",
    "DataConfig",
    "Diverged",
    "EmaConfig",
    "ModelConfig",
    "OptimizerConfig",
    "LoopConfig",
    "Stopped",
    "TrainConfig",
    "train",
]
