"""`ddpm-jax train`: from a folder of pictures to a checkpoint."""

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


def train_command(argv: Sequence[str]) -> Callable[..., Any]:
    """Return the command, its defaults being those of the preset that the command line names.

    Raises:
        ValueError: there is no such preset.
    """
    from ddpm_jax.training import PRESETS, TrainConfig
    from ddpm_jax.validation import check, nearest

    name = _value_of(argv, "--preset") or DEFAULT_PRESET
    for origin in ("--init", "--model-config"):
        if _value_of(argv, origin):
            given = [word for word in argv if word.partition("=")[0] in _OF_THE_NETWORK]
            check(not given, f"{origin} brings its own network: leave {' and '.join(given)} out.")
    known = ", ".join(PRESETS)
    check(name in PRESETS, f"--preset {name} is unknown.{nearest(name, PRESETS)} There is {known}.")

    def train(
        config: TrainConfig = PRESETS[name],
        preset: str = DEFAULT_PRESET,
        out: Path = Path("run"),
        resume: bool = False,
        coordinator: str | None = None,
        num_processes: int | None = None,
        process_id: int | None = None,
    ) -> None:
        """Train a model on a folder of images. A run that was stopped goes on with --resume.

        Args:
            config: all settings.
            preset: cifar10, lsun-256, celebahq-256 (the paper's), small-32 or tiny-16 (for CPUs): the defaults of all
                other flags, which --help then shows.
            out: the run's folder, which `load` opens.
            resume: go on with the run in that folder; begin it if there is none.
            coordinator: HOST:PORT of process 0, to run as one of several processes (jax.distributed).
            num_processes: how many there are.
            process_id: which one this is.
        """
        join(coordinator, num_processes, process_id)
        from ddpm_jax import training
        from ddpm_jax.checkpoint.folder import CHECKPOINTS, steps_in

        logging.basicConfig(level=logging.WARNING, format="ddpm-jax: %(message)s")
        check(config.data.data, "--data is missing: a folder of images, an .npz or .npy file, or `digits`.")
        training.train(config, out, resume=resume)
        if max(steps_in(out / CHECKPOINTS), default=0) < config.run.steps:
            return  # stopped, which has been said
        print(f"{out}: ddpm_jax.load({str(out)!r}) opens it, `ddpm-jax export {out} OUT` publishes it.")

    return train


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    for number, word in enumerate(argv):
        if word == flag and number + 1 < len(argv):
            return argv[number + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None
