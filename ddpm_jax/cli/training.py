"""`ddpm-jax train`: from a folder of pictures to a checkpoint."""

import argparse
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
# Flags that decide the defaults of the others, which --help shows. They are parsed first, by themselves.
_FIRST = ("--preset", "--init", "--model-config", "--resolution", "--warmup-steps", "--attention-resolutions")


def train_command(argv: Sequence[str]) -> Callable[..., Any]:
    """Return the command, with the defaults of the preset and the network that the command line names.

    Raises:
        ValueError: there is no such preset.
    """
    from ddpm_jax.training import PRESETS, TrainConfig
    from ddpm_jax.training.presets import at_resolution, for_network
    from ddpm_jax.validation import check, nearest

    first = _first(argv)
    default = "fine-tune" if first.init else DEFAULT_PRESET
    name, known = first.preset or default, ", ".join(PRESETS)
    check(name in PRESETS, f"--preset {name} is unknown.{nearest(name, PRESETS)} There is {known}.")
    defaults, resolution = PRESETS[name], first.resolution or ""
    if first.init:
        defaults = for_network(defaults, init=first.init)
    elif first.model_config:
        defaults = for_network(defaults, model_config=Path(first.model_config))
    elif resolution.isdigit() and int(resolution) and first.attention_resolutions is None:
        defaults = at_resolution(defaults, int(resolution))

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
        """Train a model on a folder of images. --resume continues a run that was interrupted.

        The exit code is 0 only when the last step is done. It is 143 after SIGTERM and 130 after Ctrl-C, which save the
        current step (a second Ctrl-C interrupts at once), and 1 after an error.

        Args:
            config: all settings.
            preset: the defaults of all other flags, which --help then shows. The paper's: cifar10 (it reached FID
                3.17), lsun-256 (7.89 for churches, 19.75 for cats), celebahq-256 (none published). For CPUs: small-32,
                tiny-16. With --init: fine-tune.
            out: the run's folder, which `load` opens.
            resume: continue the run in that folder; begin it if there is none.
            compile_cache: folder that keeps compiled programs for the next run; `none` keeps none. The user's cache
                folder if left out.
            coordinator: HOST:PORT of process 0, to run as one of several processes (jax.distributed).
            num_processes: number of processes.
            process_id: number of this process.
            distributed: run as one of several processes that find each other (TPU pods, Slurm, Open MPI).
        """
        join(coordinator, num_processes, process_id, distributed)
        keep_compiled(compile_cache)
        from ddpm_jax import training

        logging.basicConfig(level=logging.WARNING, format="ddpm-jax: %(message)s")
        if first.warmup_steps is None:
            config = _with_warmup(config, out if resume else None)
        training.train(config, out, resume=resume)
        publish = f"ddpm-jax export {shlex.quote(str(out))} OUT"
        print(f"{out}: ddpm_jax.load({str(out)!r}) opens it, `{publish}` publishes it.")

    return train


def _first(argv: Sequence[str]) -> argparse.Namespace:
    """Return the values of the flags in _FIRST, None where a flag is not given, and leave all other words alone."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in _FIRST:
        parser.add_argument(flag, nargs="*" if flag == "--attention-resolutions" else "?")
    words = [name.replace("_", "-") + equals + value for name, equals, value in (word.partition("=") for word in argv)]
    flags = [new if old.startswith("--") else old for old, new in zip(argv, words, strict=True)]
    return parser.parse_known_args(flags)[0]


def _with_warmup(config: Any, run_folder: Path | None) -> Any:
    """Return settings with the warm-up of the run to be resumed or, in a new one, at most a tenth of its steps."""
    from ddpm_jax.checkpoint.folder import is_run, read_record

    steps, preset = config.loop.steps, config.optimizer.warmup_steps
    if run_folder is not None and is_run(run_folder.expanduser()):
        warmup = read_record(run_folder.expanduser())["config"]["optimizer"]["warmup_steps"]
    elif preset >= steps:
        warmup = steps // 10
        log.warning("The preset's warm-up of %d steps is cut to %d, a tenth of --steps %d.", preset, warmup, steps)
    else:
        return config
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup))
