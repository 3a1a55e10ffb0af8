"""Which timesteps a sampler visits, and what they are called in scheduler configs."""

import operator
from collections.abc import Sequence

import numpy as np

from ddpm_jax.validation import check

SPACINGS = ("leading", "linspace", "trailing")


def timesteps(
    num_train_timesteps: int,
    num_steps: int,
    spacing: str = "leading",
    steps_offset: int = 0,
    custom: Sequence[int] | None = None,
) -> np.ndarray:
    """Return the decreasing grid of timesteps of `set_timesteps` in diffusers' DDPM and DDIM schedulers.

    leading:  k (T // N) + steps_offset           (Lin et al. 2023, table 2, names the three)
    linspace: round(k (T - 1) / (N - 1))
    trailing: round(T - k T / N) - 1

    diffusers' trailing spacing has one entry too many, -1, for some N (T = 1000 and N = 61, 103, 121, ...; a float step
    of `np.arange`); here it always has N.

    Args:
        num_train_timesteps: T.
        num_steps: N, from 1 to T.
        spacing: "leading", "linspace" or "trailing".
        steps_offset: added to the leading grid.
        custom: a strictly decreasing grid of one's own; it wins over all the others.

    Raises:
        ValueError: N out of range, an unknown spacing, a custom grid that does not fall or leaves 0 .. T-1, an offset
            that leaves it.

    Example:
        >>> timesteps(1000, 5).tolist(), timesteps(1000, 5, "trailing").tolist()
        ([800, 600, 400, 200, 0], [999, 799, 599, 399, 199])
    """
    total = num_train_timesteps
    if custom is not None:
        grid = np.asarray(custom)
        integers = grid.ndim == 1 and grid.size > 0 and np.issubdtype(grid.dtype, np.integer)
        check(integers, f"`timesteps` must be a list of integers, not {custom!r}.")
        check(
            np.all(np.diff(grid) < 0),
            f"`timesteps` must fall strictly, from noisy to clean, not {grid.tolist()}.",
        )
        check(
            0 <= grid[-1] and grid[0] < total,
            f"`timesteps` must lie in 0 .. {total - 1}, not {grid.tolist()}.",
        )
        return grid
    check_num_steps(num_steps, total)
    check(
        spacing in SPACINGS,
        f"`timestep_spacing` must be one of {list(SPACINGS)}, not {spacing!r}.",
    )
    count = np.arange(num_steps)[::-1]
    if spacing == "leading":
        grid = count * (total // num_steps) + steps_offset
        check(
            0 <= grid[-1] and grid[0] < total,
            f"`steps_offset` {steps_offset} with {num_steps} steps visits {grid[0]}, beyond 0 .. {total - 1}.",
        )
        return grid
    if spacing == "linspace":
        return np.linspace(0, total - 1, num_steps).round()[::-1].astype(int)
    return np.round(total - np.arange(num_steps) * (total / num_steps)).astype(int) - 1


def check_num_steps(num_steps: int, num_train_timesteps: int) -> int:
    """Return num_steps as an int; refuse what is no integer from 1 to T."""
    try:
        steps = operator.index(num_steps)
    except TypeError:
        steps = 0
    check(
        1 <= steps <= num_train_timesteps and not isinstance(num_steps, bool),
        f"`num_steps` must be an integer from 1 to {num_train_timesteps} (the training timesteps), not {num_steps!r}.",
    )
    return steps
