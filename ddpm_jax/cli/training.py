"""`ddpm-jax train`: from a folder of pictures to a checkpoint."""

import dataclasses
import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddpm_jax.cli.arguments import join
from ddpm_jax.cli.compile_cache import keep_compiled

log = logging.getLogger(__name__)

DEFAULT_PRESET = "small-32"


def train_command(argv: Sequence[str]) -> Callable[..., Any]:
    """Return the command, its defaults being those of the preset that the command line names.

    Raises:
        ValueError: there is no such preset.
    """
    from ddpm_jax.training import PRESETS, TrainConfig
    from ddpm_jax.training.settings import OF_THE_NETWORK, OF_THE_SCHEDULE
    from ddpm_jax.validation import check, nearest

    flags = [word.partition("=")[0].replace("_", "-") for word in argv]
    brought: set[str] = set()
    for origin, own in (("--init", (*OF_THE_NETWORK, *OF_THE_SCHEDULE)), ("--model-config", OF_THE_NETWORK)):
        if _value_of(argv, origin):
            given = [flag for flag in flags if flag in {"--" + name.replace("_", "-") for name in own}]
            check(not given, f"{origin} brings its own: leave {' and '.join(given)} out.")
            brought |= set(own)
    default = "fine-tune" if _value_of(argv, "--init") else DEFAULT_PRESET
    name, known = _value_of(argv, "--preset") or default, ", ".join(PRESETS)
    check(name in PRESETS, f"--preset {name} is unknown.{nearest(name, PRESETS)} There is {known}.")
    defaults = PRESETS[name]
    resolution = _value_of(argv, "--resolution") or ""
    if brought:  # with the resolution that it is for
        data, model = dataclasses.replace(defaults.data, resolution=None), _without(defaults.model, brought)
        objective = _without(defaults.objective, {"variance_type"} if _value_of(argv, "--init") else set())
        defaults = dataclasses.replace(defaults, data=data, model=model, objective=objective)
    elif resolution.isdigit() and defaults.data.resolution and "--attention-resolutions" not in flags:
        sides = (side * int(resolution) // defaults.data.resolution for side in defaults.model.attention_resolutions)
        model = dataclasses.replace(defaults.model, attention_resolutions=tuple(sides))  # at the same levels
        defaults = dataclasses.replace(defaults, model=model)

    def train(
        config: TrainConfig = defaults,
        preset: str = default,
        out: Path = Path("run"),
        resume: bool = False,
        compile_cache: str | None = None,
        coordinator: str | None = None,
        num_processes: int | None = None,
        process_id: int | None = None,
        distributed: bool = False,
    ) -> None:
        """Train a model on a folder of images. A run that was stopped goes on with --resume.

        It exits with 0 only when the last step is done: with 143 after SIGTERM and 130 after Ctrl-C, when it has saved
        the step that it had come to (a second Ctrl-C ends it at once), and with 1 where something is wrong.

        Args:
            config: all settings.
            preset: the defaults of all other flags, which --help then shows. The paper's: cifar10 (it reached FID
                3.17), lsun-256 (7.89 for churches, 19.75 for cats), celebahq-256 (none published). For CPUs: small-32,
                tiny-16. With --init: fine-tune.
            out: the run's folder, which `load` opens.
            resume: go on with the run in that folder; begin it if there is none.
            compile_cache: folder that keeps compiled programs for the next run; `none` keeps none. The user's cache
                folder if left out.
            coordinator: HOST:PORT of process 0, to run as one of several processes (jax.distributed).
            num_processes: how many there are.
            process_id: which one this is.
            distributed: run as one of several processes that find each other (TPU pods, Slurm, Open MPI).
        """
        join(coordinator, num_processes, process_id, distributed)
        keep_compiled(compile_cache)
        from ddpm_jax import training

        logging.basicConfig(level=logging.WARNING, format="ddpm-jax: %(message)s")
        if "--warmup-steps" not in flags:
            config = _with_warmup(config, out if resume else None)
        training.train(config, out, resume=resume)
        publish = f"ddpm-jax export {shlex.quote(str(out))} OUT"
        print(f"{out}: ddpm_jax.load({str(out)!r}) opens it, `{publish}` publishes it.")

    return train


def _without(settings: Any, names: set[str]) -> Any:
    """Give some fields their defaults."""
    plain = {field.name: field.default for field in dataclasses.fields(settings) if field.name in names}
    return dataclasses.replace(settings, **plain)


def _with_warmup(config: Any, run: Path | None) -> Any:
    """Take the warm-up of the run that is to go on; in a new one, a tenth of the steps where the preset's is longer."""
    from ddpm_jax.training import published

    steps, preset = config.run.steps, config.optimizer.warmup_steps
    if run is not None and published.is_run(run.expanduser()):
        warmup = published.read_record(run.expanduser())["config"]["optimizer"]["warmup_steps"]
    elif preset >= steps:
        warmup = steps // 10
        log.warning("The preset's warm-up of %d steps is cut to %d, a tenth of --steps %d.", preset, warmup, steps)
    else:
        return config
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup))


def _value_of(argv: Sequence[str], flag: str) -> str | None:
    for number, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag and (equals or number + 1 < len(argv)):
            return value if equals else argv[number + 1]
    return None
