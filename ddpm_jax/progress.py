"""How far a long job is: a bar on a terminal, plain lines in a log file. And how long it took."""

import sys
import time
from collections.abc import Callable
from typing import Any

from ddpm_jax.types import Number

SECONDS = 30.0  # between lines


def bar(total: int, *, unit: str, initial: int = 0, shown: bool = True, leave: bool = True, **of_terminal: Any) -> Any:
    """Return a bar with tqdm's methods. Where stderr is no terminal, it writes a line every 30 seconds instead.

    Args:
        total: length of the whole job.
        unit: what is counted, as "steps".
        initial: how much was done before.
        shown: False in processes that show nothing.
        leave: whether the last state stays visible.
        **of_terminal: further arguments of tqdm, used on a terminal.

    Example:
        >>> with bar(10, unit="steps", shown=False) as progress:
        ...     progress.update(3)
        >>> progress.n
        3
    """
    if shown and sys.stderr.isatty():
        from tqdm import tqdm

        return tqdm(total=total, initial=initial, unit=f" {unit}", leave=leave, dynamic_ncols=True, **of_terminal)
    return _Lines(total, unit, initial, shown, leave)


def follow(bar: Any) -> Callable[[Number], None]:
    """Return a function that is told how much of the whole job is done, and moves the bar there.

    The time is measured from its first call on: what is before it went into compiling, or was done by an earlier job.

    Example:
        >>> with bar(10, unit="steps", shown=False) as progress:
        ...     follow(progress)(3)
        >>> progress.n
        3
    """

    def show(done: Number) -> None:
        if bar.n == bar.initial:
            bar.unpause()
        bar.update(done - bar.n)

    return show


class _Lines:
    """tqdm's methods, printing lines on stderr: files of nohup and Slurm would keep every redraw of a bar."""

    def __init__(self, total: Number, unit: str, initial: Number, shown: bool, leave: bool):
        self.total, self.unit, self.initial, self.shown, self.leave = total, unit, initial, shown, leave
        self.n, self.said, self.note = initial, initial, ""
        self.started = self.last = time.monotonic()

    def update(self, n: Number = 1) -> None:
        self.n += n
        if time.monotonic() - self.last >= SECONDS:
            self._say()

    def set_postfix_str(self, note: str) -> None:
        self.note = note

    def unpause(self) -> None:
        """Measure the time from now on."""
        self.started = time.monotonic()

    def close(self) -> None:
        if self.leave and self.n != self.said:
            self._say()

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _say(self) -> None:
        self.said, self.last = self.n, time.monotonic()
        if not self.shown:
            return
        seconds, done = self.last - self.started, self.n - self.initial
        text = f"{int(self.n)} of {self.total} {self.unit}, {_clock(seconds)} gone"
        if 0 < done and self.n < self.total:
            text += f", {_clock(seconds * (self.total - self.n) / done)} to go"
        print(text + (f": {self.note}" if self.note else ""), file=sys.stderr, flush=True)


class Stopwatch:
    """Seconds since its creation: those in which JAX traced and compiled, and the others.

    Example:
        >>> compiling, running = Stopwatch().seconds()
        >>> compiling, running > 0
        (0.0, True)
    """

    def __init__(self):
        import jax

        self.started, self.compiling = time.perf_counter(), 0.0
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of compiling and the rest, which is never 0.

        Older versions of JAX count a function that is traced inside another one twice.
        """
        return self.compiling, max(time.perf_counter() - self.started - self.compiling, 1e-3)

    def _hear(self, event: str, duration_secs: Number, **_: Any) -> None:  # orbax reports whole numbers
        if event.startswith("/jax/core/compile/"):
            self.compiling += duration_secs


def _clock(seconds: Number) -> str:
    """Write a time as hours, minutes and seconds.

    Example:
        >>> _clock(3725.0)
        '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
