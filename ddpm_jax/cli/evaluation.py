"""`ddpm-jax evaluate`: a model or images against real ones, as the papers do it."""

import inspect
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ddpm_jax import progress
from ddpm_jax.cli.arguments import at_size, check_output, choose_sampler, class_of, in_flags, join, named_sampler
from ddpm_jax.cli.compile_cache import keep_compiled
from ddpm_jax.types import Number
from ddpm_jax.validation import check

_OF_MODELS = (  # arguments that act on a model alone
    *("num_images", "batch_size", "seed", "sampler", "fast", "steps", "set", "class_label", "guidance_scale"),
    *("null_class", "image_size", "dtype", "revision", "variant", "subfolder", "ema", "bpd", "ode"),
)


def evaluate(
    images: Positional[str | None] = None,
    reference: str | None = None,
    out: Path = Path("evaluation"),
    features: str = "pixels",
    weights: Path | None = None,
    resolution: int | None = None,
    image_channels: int | None = None,
    background: str | None = None,
    skip_broken: bool = False,
    protocol: str | None = None,
    num_resamples: int = 200,
    level: float = 0.95,
    bpd: int = 0,
    ode: bool = False,
    num_images: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    sampler: str | None = None,
    fast: bool = False,
    steps: int | None = None,
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="KNOB=VALUE")] = (),
    class_label: str | None = None,
    guidance_scale: float | None = None,
    null_class: int | None = None,
    image_size: str | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    revision: str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    ema: bool | None = None,
    verify: Path | None = None,
    force: bool = False,
    compile_cache: str | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    distributed: bool = False,
) -> None:
    """Evaluate a model or images against real ones: FID, KID, precision, recall and others, in report.json and .html.

    An evaluation that was interrupted goes on when it is started again with the same settings.

    Args:
        images: a model, from which images are drawn: a hub id, a folder, a run, or the package's demo if left out; or
            images: a folder, a set drawn by `sample`, an .npz or .npy file of uint8 images, or `digits`.
        reference: real images, likewise; or an .npz of statistics, from `stats` or another program.
        out: the folder to write into; an evaluation that was begun there with the same settings is continued.
        features: the extractor. pixels needs no download; papers use inception-2048/torch-fidelity and its kind.
        weights: the file of the extractor's weights.
        resolution: bring the largest square in the middle of each image to this side, on both sides; if left out, that
            of the model.
        image_channels: 1 turns all images that are read grey, 3 turns them to colour.
        background: colour below transparent pixels: white, black, #rrggbb, or none.
        skip_broken: leave broken image files out instead of refusing the folder.
        protocol: the extractor whose features the statistics of another program are of.
        num_resamples: bootstrap samples of each interval; 0 for no intervals, which take most of the time.
        level: of the intervals.
        bpd: also the bound on the likelihood of so many images of the reference, in bits/dim.
        ode: with --bpd, also their likelihood by the probability flow.
        num_images: images to draw; if left out, as many as the reference has, at most 50,000.
        batch_size: images per run of the program.
        seed: of the random key; image i depends on (seed, i) alone.
        sampler: a name in ddpm_jax.samplers.SAMPLERS; the one that the checkpoint's scheduler config names if left out.
        fast: DPM-Solver++ of order 3, clipped, with 20 evaluations; the same as --sampler fast.
        steps: steps of the sampler.
        set: any further knob of the sampler, as eta=0.5; may be repeated.
        class_label: name or number of the class, for class-conditional models.
        guidance_scale: of classifier-free guidance; 1 is none.
        null_class: number of the class that stands for none, if the model does not name it.
        image_size: N or HxW pixels, if not the model's own size.
        dtype: compute dtype of convolutions and dense layers.
        revision: branch, tag or commit on the hub.
        variant: fp16 takes the weights stored under that name.
        subfolder: of the folder or repository.
        ema: True takes unet_ema, False unet.
        verify: a report.json: repeat that evaluation from its record alone, and say what differs; the exit code is 1
            if something does.
        force: replace the evaluation in the folder.
        compile_cache: folder that keeps compiled programs for the next run; `none` keeps none. The user's cache folder
            if left out.
        coordinator: HOST:PORT of process 0, to run as one of several processes (jax.distributed).
        num_processes: number of processes.
        process_id: number of this process.
        distributed: run as one of several processes that find each other (TPU pods, Slurm, Open MPI).
    """
    given: dict[str, Any] = dict(locals())
    if verify is not None:
        idle = _given(given, [name for name in _DEFAULTS if name not in ("verify", "compile_cache")])
        check(not idle, f"--verify takes all from the report; leave {', '.join(idle)} out.")
        keep_compiled(compile_cache)
        _verify(verify)
        return
    if reference is None:
        raise ValueError("`reference` is missing: a folder or an .npz of real images, or an .npz of statistics.")
    check_output(out)
    join(coordinator, num_processes, process_id, distributed)
    keep_compiled(compile_cache)

    import jax

    from ddpm_jax.evaluation import evaluating

    if _is_images(images, subfolder):
        idle = _given(given, _OF_MODELS)
        check(not idle, f"`images` {images} are images; leave {', '.join(idle)} out, for models alone.")
        subject: Any = images
    else:
        subject = _drawn(given)
    with _Bars(shown=jax.process_index() == 0) as bars, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = evaluating.evaluate(
            subject,
            reference,
            out,
            features=features,
            weights=weights,
            resolution=resolution,
            channels=image_channels,
            background=background,
            skip_broken=skip_broken,
            protocol=protocol,
            num_resamples=num_resamples,
            level=level,
            bits_per_dim=bpd,
            flow=ode,
            force=force,
            watch=bars.show,
        )
    if report is None:  # another process has it
        return
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        print(f"ddpm-jax: {in_flags(text, evaluate)}", file=sys.stderr)
    _print(report)
    print(f"{out / evaluating.PAGE} and {out / evaluating.REPORT} are written.")


def _is_images(images: str | None, subfolder: str | None) -> bool:
    """Tell images from a model: a file, `digits`, a drawn set, or a folder that holds no checkpoint."""
    from ddpm_jax.checkpoint import nearby
    from ddpm_jax.files import SET_FILE

    if images is None or subfolder is not None:
        return False
    path = Path(images).expanduser()
    if not path.is_dir():
        return images == "digits" or path.suffix in (".npz", ".npy") or path.is_file()
    if (path / SET_FILE).is_file():
        return True
    return not (nearby.is_cached_repository(path) or nearby.opens(nearby.names_below(path)))


def _drawn(given: dict[str, Any]) -> Any:
    """Return the set that is drawn from a model, by the arguments of `evaluate`."""
    from ddpm_jax.checkpoint.source import DEMO, locate, read
    from ddpm_jax.evaluation.subjects import Drawn
    from ddpm_jax.images.draw_set import Recipe

    sampler = named_sampler(given["sampler"], fast=given["fast"])
    name = DEMO if given["images"] is None else given["images"]
    path = Path(name).expanduser()
    origin: dict[str, Any] = {"source": str(path.absolute()) if path.is_dir() else name}
    origin |= {key: given[key] for key in ("revision", "variant", "subfolder", "ema") if given[key] is not None}
    where = locate(**origin)
    if where.source.get("revision") and not path.is_dir():
        origin["revision"] = where.source["revision"]  # the commit, which a branch may leave
    params = at_size(read(where, dtype=given["dtype"]), given["image_size"])
    chosen = choose_sampler(sampler, given["steps"], given["set"], params.config)
    label, _ = class_of(given["class_label"], params.config)
    recipe = Recipe(
        params=params,
        sampler=chosen.sampler,
        seed=given["seed"],
        class_label=label,
        guidance_scale=given["guidance_scale"],
        null_class=given["null_class"],
    )
    print(f"{name} by {chosen.text}, {recipe.num_evals} evaluations an image, seed {recipe.seed}.")
    return Drawn(recipe=recipe, num_images=given["num_images"], batch_size=given["batch_size"], origin=origin)


def _verify(path: Path) -> None:
    from ddpm_jax.evaluation.verifying import verify

    with _Bars(shown=True) as bars, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report holds them, and they are compared
        found = verify(path, watch=bars.show)
    for text in found.environment:
        print(f"Differs in versions or hardware: {text}.")
    for text in found.differences:
        print(f"Differs: {text}.")
    if found.differences:
        what = "results" if found.repeated else "inputs, so that it was not repeated"
        print(f"{path} is not reproduced: {len(found.differences)} differences in {what}.", file=sys.stderr)
        sys.exit(1)
    print(f"{path} is reproduced: {found.num_results} results are equal to the last digit.")


def _print(report: dict[str, Any]) -> None:
    """Print the numbers of a report."""
    results, level = report["results"], report["settings"]["level"]
    for name, score in results["metrics"].items():
        between = "" if score["low"] is None else f" ({100 * level:g}%: {score['low']:.5g} to {score['high']:.5g})"
        of_real = "" if score["real"] is None else f"; real images: {score['real']:.5g}"
        print(f"{name}: {score['value']:.5g}{between}{of_real}")
    for name, reason in results["not_computed"].items():
        print(f"{name}: not computed, {reason}")
    likelihood = results["likelihood"]
    for name in ("bits_per_dim", "flow") if likelihood else ():
        if name in likelihood:
            mean, error = likelihood[name]["value"], likelihood[name]["standard_error"]
            print(f"{name}: {mean:.5g}{'' if error is None else f' +- {error:.2g}'}")


class _Bars:
    """A progress bar for each stage, one after another."""

    def __init__(self, *, shown: bool):
        self.shown, self.stage, self.bar = shown, None, None

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def show(self, stage: str, done: Number, total: Number) -> None:
        """Show how much of a stage is done, in percent."""
        if stage != self.stage:
            self._close()
            self.stage = stage
            form = "{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
            self.bar = progress.bar(
                100, unit=f"% of {stage}", shown=self.shown, leave=False, bar_format=form, desc=stage
            )
        assert self.bar is not None, "the stage has a bar"
        self.bar.update(100 * done / total - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def _given(given: dict[str, Any], names: Any) -> list[str]:
    """Return the flags among some arguments whose values are not the defaults."""
    flag = lambda name: "IMAGES" if name == "images" else "--" + name.replace("_", "-")
    return [flag(name) for name in names if given[name] != _DEFAULTS[name]]


_DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(evaluate).parameters.items()}
