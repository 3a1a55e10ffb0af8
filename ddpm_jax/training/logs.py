"""The log of a run: a progress bar, metrics.jsonl, TensorBoard, grids of samples, the learning curve."""

import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import plotting, progress
from ddpm_jax.files import whole_file
from ddpm_jax.pixels import picture
from ddpm_jax.training.step import QUARTERS, Metrics

METRICS = "metrics.jsonl"
SAMPLES = "samples"
LAG = 2  # steps: losses are read two steps late. They are computed by then, so reading does not block


class Diverged(ValueError):
    """The loss, or the norm of its gradient, is not finite."""


class Log:
    """Metrics of the steps, averaged into lines.

    All processes keep a log; only the one with `writes` writes files.
    """

    def __init__(
        self, folder: Path, *, start: int, stop: int, every: int, batch_size: int, writes: bool, tensorboard: bool
    ):
        """Continue a log. Lines of steps after `start`, which will be done again, are removed.

        Args:
            folder: the run's.
            start: steps done before.
            stop: steps of the whole run.
            every: steps between lines.
            batch_size: images of a step.
            writes: whether this process writes.
            tensorboard: also write TensorBoard's event files.
        """
        self.folder, self.every, self.batch_size, self.writes = folder, every, batch_size, writes
        self.pending: deque[tuple[int, Metrics]] = deque()
        self.losses: deque[tuple[int, float]] = deque(maxlen=20)
        self.since, self.gathered = (start, time.perf_counter()), []
        self.board = None
        self.bar = progress.bar(stop, initial=start, unit="steps", shown=writes)
        if not writes:
            return
        lines = [line for line in read(folder) if line["step"] <= start]
        with whole_file(folder / METRICS) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(self, step: int, metrics: Metrics) -> None:
        """Add the metrics of a step, without waiting for them to be computed.

        Raises:
            Diverged: the loss of this step or an earlier one is not finite.
        """
        self.pending.append((step, metrics))
        self.bar.update()
        while len(self.pending) > LAG:
            self._settle()
        if step % self.every == 0:
            self.settle()

    def flush(self, step: int) -> None:
        """Write a line of the steps since the last one, when the run ends or stops."""
        self.settle()
        if self.gathered:
            self._line(step)

    def settle(self) -> None:
        """Wait for the metrics of all steps so far, and check them."""
        while self.pending:
            self._settle()

    def _settle(self) -> None:
        step, metrics = self.pending.popleft()
        metrics = jax.tree.map(np.asarray, metrics)
        loss = float(metrics.loss)
        self.losses.append((step, loss))
        if not (math.isfinite(loss) and np.isfinite(metrics.grad_norm)):
            history = ", ".join(f"{number}: {value:.4g}" for number, value in self.losses)
            raise Diverged(f"The loss or its gradient is not finite at step {step}. The last losses: {history}.")
        self.gathered.append(metrics)
        if step % self.every == 0:
            self._line(step)

    def _line(self, step: int) -> None:
        first, began = self.since
        now = time.perf_counter()
        seconds = max(now - began, 1e-9)
        self.since = (step, now)
        sums = np.sum([metrics.quarter_sums for metrics in self.gathered], axis=0)
        counts = np.sum([metrics.quarter_counts for metrics in self.gathered], axis=0)
        line = {
            "step": step,
            "loss": float(np.mean([metrics.loss for metrics in self.gathered])),
            **{
                f"loss_q{number + 1}": float(sums[number] / counts[number]) if counts[number] else None
                for number in range(QUARTERS)
            },
            "grad_norm": float(np.mean([metrics.grad_norm for metrics in self.gathered])),
            "learning_rate": float(self.gathered[-1].learning_rate),
            "steps_per_second": (step - first) / seconds,
            "images_per_second": (step - first) * self.batch_size / seconds,
        }
        self.gathered = []
        self.bar.set_postfix_str(f"loss {line['loss']:.4f}, {line['images_per_second']:.1f} images/s")
        self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl and its numbers to TensorBoard."""
        if not self.writes:
            return
        with open(self.folder / METRICS, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self.board:
            for name, value in line.items():
                if name != "step" and value is not None:
                    self.board.add_scalar(name, value, line["step"])

    def picture(self, step: int, grid: np.ndarray) -> None:
        """Write a grid of samples."""
        if not self.writes:
            return
        folder = self.folder / SAMPLES
        folder.mkdir(exist_ok=True)
        with whole_file(folder / f"step-{step:08d}.png") as partial:
            picture(grid).save(partial, "PNG")
        if self.board:
            self.board.add_image("samples", grid, step, dataformats="HWC")

    def close(self) -> None:
        self.bar.close()
        if self.board:
            self.board.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without a last one that a kill has cut off."""
    path, lines = folder / METRICS, []
    if path.exists():
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                break
    return lines


def draw_curve(folder: Path) -> None:
    """Draw a run's losses into learning_curve.png."""
    lines = read(folder)
    curves = {}
    for name in ("loss", *(f"loss_q{number + 1}" for number in range(QUARTERS)), "validation_loss"):
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if points:
            curves[name] = points
    if curves:
        plotting.curves(curves, folder / "learning_curve.png", x_label="step", y_label="loss")
