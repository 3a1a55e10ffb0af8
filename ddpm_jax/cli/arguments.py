"""What the commands share: samplers, classes and sizes from text, output folders, processes, messages in flags."""

import ast
import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tyro.conf import Positional

from ddpm_jax.files import check_local

_WORDS = {"none": None, "null": None, "true": True, "false": False}
# Arguments of the library whose flag has another name.
_ALIASES = {
    "bits_per_dim": "bpd",
    "channels": "image_channels",
    "class_labels": "class_label",
    "data": "images",
    "first_index": "index",
    "flow": "ode",
    "folder": "out",
    "overwrite": "force",
    "path": "out",
    "sample_size": "image_size",
}


class Chosen(NamedTuple):
    """A sampler, and its text.

    Attributes:
        sampler: the instance.
        text: as `registry.describe` writes it.
        former: as earlier versions wrote it into samples.json: also with those knobs of the checkpoint's file that have
            no effect.
    """

    sampler: Any
    text: str
    former: str


def named_sampler(sampler: str | None, *, fast: bool) -> str | None:
    """Return the name of the sampler that --sampler or --fast asks for, or None for the checkpoint's own.

    Raises:
        ValueError: both are given.
    """
    if fast and sampler is not None:
        raise ValueError("--fast is a sampler; leave --sampler out.")
    return "fast" if fast else sampler


def choose_sampler(name: str | None, steps: int | None, knobs: Sequence[str], config: Any) -> Chosen:
    """Return the sampler of a name, or the checkpoint's own, with knobs.

    Args:
        name: in SAMPLERS, or None for the sampler that the checkpoint names.
        steps: number of steps, or None.
        knobs: further knobs, each as KNOB=VALUE.
        config: of the checkpoint.

    Raises:
        ValueError: an unknown name or knob, a bad value, a knob without effect beside the others.
    """
    from ddpm_jax.samplers import effects, registry
    from ddpm_jax.validation import check, nearest

    if name is None:
        sampler, own = registry.named(config.sampler)
    else:
        sampler, own = registry.own_knobs(registry.by_name(name))
    fields = {field.name: field for field in dataclasses.fields(sampler)}
    given: dict[str, Any] = {} if steps is None else {"num_steps": steps}
    for knob in knobs:
        field, equals, text = (part.strip() for part in knob.partition("="))
        check(
            equals and field in fields,
            f"--set {knob}: {sampler.__name__} has the knobs {', '.join(fields)}, set as KNOB=VALUE."
            f"{nearest(field, fields)}",
        )
        check(field not in given, f"--set {knob}: `{field}` is given twice. Give it once.")
        given[field] = _value(text, several="tuple" in str(fields[field].type))
    chosen = effects.with_effects(sampler, own, given)
    return Chosen(chosen, registry.describe(chosen), registry.in_words(sampler, own | given))


def _value(text: str, *, several: bool) -> Any:
    """Read a knob's value: none, true, false, a number, several numbers with commas between them, or a word.

    Args:
        text: as typed.
        several: whether the knob takes several values; a single number becomes a tuple of one.

    Example:
        >>> _value("900,500,0", several=True), _value("999", several=True), _value("1e-3", several=False)
        ((900, 500, 0), (999,), 0.001)
    """
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":  # some shells pass quotes on
        text = text[1:-1].strip()
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        try:
            value = float(text)  # inf
        except ValueError:
            return text
    if isinstance(value, list):
        value = tuple(value)
    single = isinstance(value, int | float) and not isinstance(value, bool)
    return (value,) if several and single else value


def class_of(text: str | None, config: Any) -> tuple[int | None, str | None]:
    """Return (number, name or None) of the class with a name or, if no class has that name, with a number.

    Raises:
        ValueError: neither the name of a class nor a number.

    Example:
        >>> from types import SimpleNamespace
        >>> class_of("2", SimpleNamespace(class_names=("1", "2", "10"))), class_of("0", SimpleNamespace(class_names=()))
        ((1, '2'), (0, None))
    """
    from ddpm_jax.validation import nearest, some

    if text is None:
        return None, None
    names = config.class_names
    number = int(text) if re.fullmatch(r"[+-]?\d+", text) else None
    if text in names:
        return names.index(text), text
    if names and number is None:
        known = some([f"{index}: {name}" for index, name in enumerate(names)], 20)
        raise ValueError(
            f"`class_label` {text!r} is no class of this checkpoint.{nearest(text, names)} There is {known}."
        )
    if number is None:
        raise ValueError(f"`class_label` must be a number, not {text!r}: this checkpoint names no classes.")
    return number, names[number] if 0 <= number < len(names) else None


def other_meaning(text: str | None, label: int | None, config: Any) -> str | None:
    """Return a note if the name of a class is also the number of another class, or None."""
    number = int(text) if text is not None and re.fullmatch(r"\d+", text) else label
    if number is None or number == label or number >= len(config.class_names):
        return None
    other = config.class_names[number]
    return f"--class-label {text} is taken as the name of class {label}; number {number} is {other!r}."


def at_size(params: Any, size: str | None) -> Any:
    """Return params for images of the size N or HxW, or unchanged for None.

    Raises:
        ValueError: no size, or one that the network cannot draw.
    """
    unet = params.config.unet
    if size is not None:
        match = re.fullmatch(r"(\d+)(?:[x,](\d+))?", size.strip().lower())
        sides = tuple(int(side) for side in match.groups() if side) if match else ()
        if not sides or 0 in sides:
            raise ValueError(f"`image_size` must be N or HxW (height and width), as 32 or 32x48, not {size!r}.")
        unet = dataclasses.replace(unet, sample_size=sides if len(sides) == 2 else sides[0])
    try:
        unet.check_size()
    except ValueError as error:
        raise ValueError(f"{error} Here: `image_size` N or HxW.") from None
    return params.replace(config=dataclasses.replace(params.config, unet=unet))


def check_output(out: Path) -> None:
    """Refuse a folder that cannot be made or written."""
    check_local(out)
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out {out} is a file; name a folder.")
    parent = out.absolute()
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"--out {out}: {parent} is not writable.")


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, distributed: bool) -> None:
    """Become one of several processes. To be called before the first use of a device."""
    given = [coordinator, num_processes, process_id]
    if given == [None] * 3 and not distributed:
        return
    if distributed and given != [None] * 3:
        raise ValueError("--distributed finds the processes by itself: leave --coordinator and the like out.")
    if None in given and not distributed:
        raise ValueError("--coordinator, --num-processes and --process-id belong together.")
    import jax

    jax.distributed.initialize(coordinator, num_processes, process_id)


def in_flags(message: str, command: Callable[..., Any] | None) -> str:
    """Replace the arguments that a message of the library names in backticks by the flags of a command.

    Example:
        >>> def command(batch_size: int, class_label: int): ...
        >>> in_flags("`batch_size` is 0 and `class_labels` none, says `jax.jit`.", command)
        '--batch-size is 0 and --class-label none, says `jax.jit`.'
    """
    if command is None:
        return message
    flags = _flags(command)
    return re.sub(r"`([a-z_][A-Za-z0-9_]*)`", lambda match: flags.get(match[1], match[0]), message)


def _flags(command: Callable[..., Any]) -> dict[str, str]:
    """Return argument -> flag for the parameters of a command, and for the fields of dataclasses among them."""
    flags = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            groups: list[Any] = [field.type for field in dataclasses.fields(parameter.annotation)]
            names = [field.name for group in groups for field in dataclasses.fields(group)]
            flags |= {field: _flag(field) for field in names}
        elif _is_positional(parameter.annotation):
            flags[name] = name.upper()
        else:
            flags[name] = _flag(name)
    aliases = {alias: flags[name] for alias, name in _ALIASES.items() if name in flags and alias not in flags}
    if "set" not in flags:
        return flags | aliases
    from ddpm_jax.samplers import SAMPLERS

    knobs = {field.name for sampler in SAMPLERS.values() for field in dataclasses.fields(sampler)}
    return {knob: f"--set {knob}=..." for knob in knobs} | {"num_steps": "--steps"} | flags | aliases


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_positional(annotation: Any) -> bool:
    marks = getattr(Positional[str], "__metadata__", ())
    return typing.get_origin(annotation) is typing.Annotated and any(mark in marks for mark in annotation.__metadata__)
