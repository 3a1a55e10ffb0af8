"""How far a long job is: a bar on a terminal, plain lines now and then in a log file."""

import sys
import time
from typing import Any

from ddpm_jax.types import Number

SECONDS = 30.0  # between lines


def bar(total: int, *, unit: str, initial: int = 0, shown: bool = True, leave: bool = True, **of_terminal: Any) -> Any:
    """Return a bar with tqdm's methods; where stderr is no terminal it writes a line every half a minute instead.

    Args:
        total: of the whole job.
        unit: what is counted, as "steps".
        initial: how much was done before.
        shown: whether this process is the one that shows it.
        leave: whether the end of it stays to be seen.
        **of_terminal: further arguments of tqdm, for a terminal.

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


class _Lines:
    """The methods of tqdm that are used here, as lines on stderr: nohup and Slurm keep every byte."""

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
        """Count the time from now on."""
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


def _clock(seconds: Number) -> str:
    """Write a time as hours, minutes and seconds.

    Example:
        >>> _clock(3725.0)
        '1:02:05'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
