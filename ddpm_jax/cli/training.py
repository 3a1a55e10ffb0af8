"""`ddpm-jax train`: from a folder of pictures to a checkpoint."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddpm_jax.cli.sampling import join

DEFAULT_PRESET = "small-32"
_OF_THE_NETWORK = (
    *("--channels", "--channel-multipliers", "--layers-per-block", "--attention-resolutions"),
    *("--attention-head-dim", "--norm-num-groups"),
)
_OF_THE_SCHEDULE = ("--prediction-type", "--beta-schedule", "--num-train-timesteps")


def train_command(argv: Sequence[str]) -> Callable[..., Any]:
    """Return the command, its defaults being those of the preset that the command line names.

    Raises:
        ValueError: there is no such preset.
    """
    from ddpm_jax.training import PRESETS, TrainConfig
    from ddpm_jax.validation import check, nearest

    flags = [word.partition("=")[0].replace("_", "-") for word in argv]
    brought = False
    for origin, own in (("--init", (*_OF_THE_NETWORK, *_OF_THE_SCHEDULE)), ("--model-config", _OF_THE_NETWORK)):
        if _value_of(argv, origin):
            given = [flag for flag in flags if flag in own]
            check(not given, f"{origin} brings its own: leave {' and '.join(given)} out.")
            brought = True
    default = "fine-tune" if _value_of(argv, "--init") else DEFAULT_PRESET
    name, known = _value_of(argv, "--preset") or default, ", ".join(PRESETS)
    check(name in PRESETS, f"--preset {name} is unknown.{nearest(name, PRESETS)} There is {known}.")
    defaults = PRESETS[name]
    resolution = _value_of(argv, "--resolution") or ""
    if brought:  # with the resolution that it is for
        defaults = dataclasses.replace(defaults, data=dataclasses.replace(defaults.data, resolution=None))
    elif resolution.isdigit() and defaults.data.resolution and "--attention-resolutions" not in flags:
        sides = (side * int(resolution) // defaults.data.resolution for side in defaults.model.attention_resolutions)
        model = dataclasses.replace(defaults.model, attention_resolutions=tuple(sides))  # at the same levels
        defaults = dataclasses.replace(defaults, model=model)

    def train(
        config: TrainConfig = defaults,
        preset: str = default,
        out: Path = Path("run"),
        resume: bool = False,
        coordinator: str | None = None,
        num_processes: int | None = None,
        process_id: int | None = None,
        distributed: bool = False,
    ) -> None:
        """Train a model on a folder of images. A run that was stopped goes on with --resume.

        Args:
            config: all settings.
            preset: the defaults of all other flags, which --help then shows. The paper's: cifar10 (it reached FID
                3.17), lsun-256 (7.89 for churches, 19.75 for cats), celebahq-256 (none published). For CPUs: small-32,
                tiny-16. With --init: fine-tune.
            out: the run's folder, which `load` opens.
            resume: go on with the run in that folder; begin it if there is none.
            coordinator: HOST:PORT of process 0, to run as one of several processes (jax.distributed).
            num_processes: how many there are.
            process_id: which one this is.
            distributed: run as one of several processes that find each other (TPU pods, Slurm, Open MPI).
        """
        join(coordinator, num_processes, process_id, distributed)
        from ddpm_jax import training
        from ddpm_jax.checkpoint.folder import CHECKPOINTS, steps_in

        logging.basicConfig(level=logging.WARNING, format="ddpm-jax: %(message)s")
        training.train(config, out, resume=resume)
        if max(steps_in(out / CHECKPOINTS), default=0) < config.run.steps:
            return  # stopped, which has been said
        print(f"{out}: ddpm_jax.load({str(out)!r}) opens it, `ddpm-jax export {out} OUT` publishes it.")

    return train


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag and (equals or number + 1 < len(argv)):
            return value if equals else argv[number + 1]
    return None
