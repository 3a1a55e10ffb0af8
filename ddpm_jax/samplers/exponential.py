"""Exponential integrators: DPM-Solver++, DPM-Solver, DEIS and UniPC.

They solve the linear part of the diffusion ODE, or SDE, exactly in lambda = log(signal / sigma), and integrate a
polynomial through the network's last outputs. With u = lambda - lambda_t, h = lambda_t - lambda_s and int the integral
over u from -h to 0, a step from s to t is

    data ODE     x_t = sigma_t / sigma_s x_s + signal_t int e^u x_0_hat                    (Lu et al. 2022b, eq. 8)
    data SDE     x_t = sigma_t / sigma_s e^-h x_s + signal_t int 2 e^2u x_0_hat + sigma_t sqrt(1 - e^-2h) noise
    noise ODE    x_t = signal_t / signal_s x_s - sigma_t int e^-u eps_hat                  (Lu et al. 2022a, eq. 3.4)
    noise SDE    x_t = signal_t / signal_s x_s - sigma_t int 2 e^-u eps_hat + sigma_t sqrt(e^2h - 1) noise

A step to the clean image is of order 1, since h is infinite there: x = x_0_hat.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ddpm_jax.samplers.grid_sampler import GridSampler, Row, basis, eps_of
from ddpm_jax.samplers.grids import Level, Process
from ddpm_jax.types import Number
from ddpm_jax.validation import Rule, check, is_int, is_number

SOLVER_TYPES = ("midpoint", "heun")
# Fewer steps than this count as few, and `lower_order_final` ends them with lower orders (Lu et al. 2022b).
FEW_STEPS = 15


class Integrator(NamedTuple):
    """One of the four integrals of this module's head.

    Attributes:
        predicts: "data" or "noise", what the polynomial goes through.
        stochastic: the SDE instead of the ODE.
    """

    predicts: str
    stochastic: bool = False

    def output(self, level: Level, x: np.ndarray, x_0: np.ndarray) -> np.ndarray:
        """Return the network's output: x_0_hat, or the eps_hat that belongs to it, so that clipping acts on both."""
        return x_0 if self.predicts == "data" else eps_of(level, x, x_0)

    def decay(self, s: Level, t: Level) -> float:
        """Return what x_s is multiplied with."""
        if self.predicts == "noise":
            return t.signal / s.signal
        return t.sigma / s.sigma * (np.exp(s.log_snr - t.log_snr) if self.stochastic else 1.0)

    def first(self, s: Level, t: Level) -> float:
        """Return the integral over the kernel: the weight of an output that is held constant."""
        power = 2 if self.stochastic else 1
        if self.predicts == "data":
            return -t.signal * np.expm1(power * (s.log_snr - t.log_snr))
        return power * (t.sigma - t.signal * s.ratio)

    def weights(self, nodes: Sequence[Level], s: Level, t: Level) -> np.ndarray:
        """Return the weights of outputs at some levels: the integrals of their Lagrange polynomials times the kernel.

        By Gauss-Legendre quadrature, which has no cancellation where steps are short.
        """
        u, quadrature = gauss_legendre(s.log_snr - t.log_snr, 0.0)
        if self.predicts == "data":
            kernel = t.signal * (2 * np.exp(2 * u) if self.stochastic else np.exp(u))
        else:
            kernel = -t.sigma * (2 if self.stochastic else 1) * np.exp(-u)
        return lagrange(np.asarray([node.log_snr - t.log_snr for node in nodes]), u) @ (quadrature * kernel)

    def two_point(self, older: Level, s: Level, t: Level, solver_type: str) -> np.ndarray:
        """Return the weights of the outputs at two levels s and `older` in a second-order step from s to t."""
        if solver_type == "heun":
            return self.weights([s, older], s, t)
        return self.first(s, t) * _extrapolated((t.log_snr - s.log_snr) / (s.log_snr - older.log_snr) / 2)

    def noise_std(self, s: Level, t: Level) -> float:
        if not self.stochastic or t.sigma == 0:  # nothing is left to denoise what would be drawn at the end
            return 0.0
        twice_h = 2 * (t.log_snr - s.log_snr)
        return t.sigma * np.sqrt(-np.expm1(-twice_h) if self.predicts == "data" else np.expm1(twice_h))

    def step(self, x: np.ndarray, nodes: Sequence[Level], outputs: Sequence[np.ndarray], s: Level, t: Level, rule: str):
        """Return x_t from x_s and the outputs at one to three levels, the newest first.

        `rule` is the solver_type: "midpoint" replaces the integral of the slope by half the first one's (with two
        levels), everything else is exact.
        """
        if t.sigma == 0:  # no noise is left: x_0_hat itself, in the words of either prediction
            flow = Integrator(self.predicts)
            return flow.decay(s, t) * x + flow.first(s, t) * outputs[0]
        if len(nodes) == 1:
            weights = [self.first(s, t)]
        elif len(nodes) == 2:
            weights = self.two_point(nodes[1], s, t, rule)
        else:
            weights = self.weights(nodes, s, t)
        return self.decay(s, t) * x + sum(w * m for w, m in zip(weights, outputs, strict=True))


def _extrapolated(slope: float) -> np.ndarray:
    """Return the weights of m_0 + slope (m_0 - m_1)."""
    return np.asarray([1 + slope, -slope])


def gauss_legendre(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the 24 points and weights of Gauss-Legendre quadrature on an interval."""
    points, weights = _legendre(24)
    half = (end - start) / 2
    return (start + end) / 2 + half * points, half * weights


_legendre = functools.cache(np.polynomial.legendre.leggauss)  # the roots take longer than all else in a step


def lagrange(nodes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return [nodes, u]: the polynomials that are 1 at one node and 0 at the others.

    Example:
        >>> lagrange(np.array([0.0, 1.0]), np.array([0.25])).ravel().tolist()
        [0.75, 0.25]
    """
    values = np.ones((len(nodes), len(u)))
    for j in range(len(nodes)):
        for k in range(len(nodes)):
            if k != j:
                values[j] *= (u - nodes[k]) / (nodes[j] - nodes[k])
    return values


def _lowers(knobs: Any) -> bool:
    """Tell whether an order is left to be lowered: that of a step to the clean image is 1 in any case."""
    to_clean = knobs.final_sigmas_type == "zero"
    if getattr(knobs, "singlestep", False):
        return knobs.solver_order != 1 and not to_clean
    return knobs.solver_order == 3 or (knobs.solver_order == 2 and not to_clean)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExponentialSampler(GridSampler):
    """The knobs that the family shares, under diffusers' names.

    Attributes:
        solver_order: 1, 2 or 3; 1 is DDIM.
        lower_order_final: end with lower orders; DPM-Solver and DEIS when there are fewer than 15 steps, UniPC always.
        final_sigmas_type: where the run ends: "zero", the clean image, or "sigma_min", the level of timestep 0.
        lambda_min_clipped: leaves out timesteps with a lower lambda, for cosine schedules, which end in almost nothing
            but noise (-5.1 there).
    """

    solver_order: int = 2
    lower_order_final: bool = True
    final_sigmas_type: str = "zero"
    lambda_min_clipped: Number = -np.inf

    ACTS: ClassVar[dict[str, Rule]] = {
        "lower_order_final": Rule(
            "`solver_order` is 3, or 2 and `final_sigmas_type` 'sigma_min'; in the singlestep form where that is "
            "'sigma_min'",
            _lowers,
        ),
    }
    _clean_last: ClassVar[bool] = False
    _orders: ClassVar[tuple[int, ...]] = (1, 2, 3)

    def __post_init__(self):
        super().__post_init__()
        good = is_int(self.solver_order) and self.solver_order in self._orders
        check(good, f"`solver_order` must be one of {list(self._orders)}, not {self.solver_order!r}.")
        self._check_flags("lower_order_final")
        self._check_choice("final_sigmas_type", ("zero", "sigma_min"))
        good = is_number(self.lambda_min_clipped)
        check(good, f"`lambda_min_clipped` must be a number, not {self.lambda_min_clipped!r}.")

    @property
    def order(self) -> int:
        return self.solver_order

    def _process(self, schedule) -> Process:
        process = super()._process(schedule)
        return process if self.lambda_min_clipped == -np.inf else process.above(self.lambda_min_clipped)

    def _end(self, process: Process) -> Level:
        return process.end(self.final_sigmas_type)


class MultistepSampler(ExponentialSampler):
    """Steps from the outputs at the last levels: one evaluation a step, and no more for higher orders."""

    _integrator: Integrator
    _rule: str

    @property
    def _draws(self) -> bool:
        return self._integrator.stochastic

    def _order_at(self, step: int, num_steps: int) -> int:
        """Return the order of a step: it rises as outputs come in, and falls at the end."""
        few = self.lower_order_final and num_steps < FEW_STEPS
        left = num_steps - step
        return min(self.solver_order, step + 1, left if few else self.solver_order)

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        order, integrator = self.solver_order, self._integrator
        x, *older, x_0, _, noise = basis(order)
        for i, (s, t) in enumerate(pairwise(levels)):
            outputs = [integrator.output(s, x, x_0), *older]
            used = self._order_at(i, len(levels) - 1)
            nodes = levels[i::-1][:used]
            x_t = integrator.step(x, nodes, outputs[:used], s, t, self._rule)
            yield Row(s, [x_t + integrator.noise_std(s, t) * noise, *outputs[: order - 1]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolver(MultistepSampler):
    """DPM-Solver (Lu et al. 2022a): exponential integrators of the noise prediction.

    Attributes:
        solver_order: 1 to 3.
        algorithm_type: "dpmsolver" is deterministic, "sde-dpmsolver" draws noise in every step.
        solver_type: how second-order steps integrate the slope: "midpoint" or exactly, "heun".
        singlestep: orders go 1, 2, (3), 1, 2, .. and each group of steps starts from one image, instead of using the
            outputs of the steps before.
        euler_at_final: in the multistep form that ends at "sigma_min", the last step is of order 1 (to the clean image
            it always is).

    Equal to `DPMSolverMultistepScheduler` and `DPMSolverSinglestepScheduler` of diffusers, except that the multistep
    form of order 3 is of order 3: theirs lacks a factor 2 in the second difference, which leaves order 2. They also
    refuse to end at the clean image.

    Example:
        >>> DPMSolver(num_steps=10).table(ScheduleConfig()).num_evals
        10
    """

    algorithm_type: str = "dpmsolver"
    solver_type: str = "midpoint"
    singlestep: bool = False
    euler_at_final: bool = False

    ACTS: ClassVar[dict[str, Rule]] = {
        **dict.fromkeys(
            ("solver_type", "singlestep"), Rule("`solver_order` is 2 or 3", lambda knobs: knobs.solver_order != 1)
        ),
        "euler_at_final": Rule(
            "`singlestep` is false, `solver_order` 2 or 3 and `final_sigmas_type` 'sigma_min'",
            lambda knobs: not knobs.singlestep and knobs.solver_order != 1 and knobs.final_sigmas_type == "sigma_min",
        ),
    }
    _algorithms: ClassVar[tuple[str, ...]] = ("dpmsolver", "sde-dpmsolver")

    def __post_init__(self):
        super().__post_init__()
        self._check_choice("algorithm_type", self._algorithms)
        self._check_choice("solver_type", SOLVER_TYPES)
        self._check_flags("singlestep", "euler_at_final")

    @property
    def order(self) -> int:
        return 1 if self._integrator.stochastic else self.solver_order

    @property
    def _integrator(self) -> Integrator:
        return Integrator("data" if "++" in self.algorithm_type else "noise", self.algorithm_type.startswith("sde-"))

    @property
    def _rule(self) -> str:
        return self.solver_type

    def _order_at(self, step: int, num_steps: int) -> int:
        last = self.euler_at_final and step == num_steps - 1
        return 1 if last else super()._order_at(step, num_steps)

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        return self._singlestep_rows(levels) if self.singlestep else super()._rows(process, levels)

    def _singlestep_rows(self, levels: list[Level]) -> Iterator[Row]:
        order, integrator = self.solver_order, self._integrator
        x, started, *older, x_0, _, noise = basis(order + 1)
        for i, used in enumerate(self._singlestep_orders(len(levels) - 1, bool(levels[-1].sigma == 0))):
            s, t, start = levels[i], levels[i + 1], levels[i + 1 - used]
            outputs = [integrator.output(s, x, x_0), *older]
            origin = x if used == 1 else started
            nodes, taken = levels[i::-1][:used], outputs[:used]
            if used == 3 and self.solver_type == "midpoint":  # the slope between the ends alone
                nodes, taken = nodes[::2], taken[::2]
            if used == 1:
                x_t = integrator.step(x, nodes, taken, s, t, self.solver_type)
            else:
                if used == 2 and self.solver_type == "midpoint":  # half the slope times the first integral
                    r = (s.log_snr - start.log_snr) / (t.log_snr - start.log_snr)
                    weights = integrator.first(start, t) * np.asarray([0.5 / r, 1 - 0.5 / r])
                else:
                    weights = integrator.weights(nodes, start, t)
                x_t = integrator.decay(start, t) * origin + sum(w * m for w, m in zip(weights, taken, strict=True))
            yield Row(s, [x_t + integrator.noise_std(start, t) * noise, origin, *outputs[: order - 1]])

    def _singlestep_orders(self, num_steps: int, to_clean: bool) -> list[int]:
        """Return the order of each step: groups of 1, 2, .., then lower ones where the steps do not fill a group."""
        order = self.solver_order
        groups, rest = divmod(num_steps, order)
        group = list(range(1, order + 1))
        orders = group * groups + group[:rest]
        if to_clean or (rest == 0 and self.lower_order_final):
            orders[-1] = 1
        return orders


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP(DPMSolver):
    """DPM-Solver++ (Lu et al. 2022b): exponential integrators of the data prediction, made to be clipped.

    "2M" of the literature is the default, "3M" solver_order 3, "2S" singlestep, "2M SDE" algorithm_type
    "sde-dpmsolver++". For its knobs see `DPMSolver`.

    Example:
        >>> DPMSolverPP(num_steps=20, solver_order=3, timestep_spacing="logsnr").table(ScheduleConfig()).num_evals
        20
    """

    algorithm_type: str = "dpmsolver++"

    _algorithms: ClassVar[tuple[str, ...]] = ("dpmsolver++", "sde-dpmsolver++")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DEIS(MultistepSampler):
    """DEIS (Zhang & Chen 2023) in its log-rho multistep form: the noise's polynomial in lambda, integrated exactly.

    rho = sigma / signal = e^-lambda, so that it is `DPMSolver` with solver_type "heun". diffusers'
    `DEISMultistepScheduler` ends at the level of timestep 0: final_sigmas_type "sigma_min".

    Example:
        >>> DEIS(num_steps=10).table(ScheduleConfig()).num_evals
        10
    """

    _integrator = Integrator("noise")
    _rule = "heun"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(MultistepSampler):
    """UniPC (Zhao et al. 2023): a multistep predictor, and a corrector that redoes each step with the next evaluation.

    The corrector costs no evaluation: the one at the predicted image serves both it and the next prediction.

    Attributes:
        solver_order: 1 to 3 of the predictor; the corrector raises it by one.
        solver_type: "bh2" (B(h) = e^h - 1) or "bh1" (B(h) = h), which differ where a rule of one coefficient is used:
            the predictor of order 2 and the corrector of order 1.
        predict_x0: data prediction; otherwise noise prediction.
        corrector: off, it is a plain multistep solver.
        disable_corrector: steps (from 0) that are not corrected.

    diffusers' "bh1" is NaN when it ends at the clean image.

    Example:
        >>> UniPC(num_steps=10).table(ScheduleConfig()).num_evals
        10
    """

    solver_type: str = "bh2"
    predict_x0: bool = True
    corrector: bool = True
    disable_corrector: tuple[int, ...] = ()

    ACTS: ClassVar[dict[str, Rule]] = {
        **dict.fromkeys(
            ("solver_type", "predict_x0"),
            Rule(
                "`corrector` is true, or `solver_order` 2 or 3",
                lambda knobs: knobs.corrector or knobs.solver_order != 1,
            ),
        ),
        "disable_corrector": Rule("`corrector` is true", lambda knobs: knobs.corrector),
    }

    def __post_init__(self):
        super().__post_init__()
        self._check_choice("solver_type", ("bh1", "bh2"))
        self._check_flags("predict_x0", "corrector")
        steps = self.disable_corrector
        good = isinstance(steps, list | tuple) and all(is_int(step, 0) for step in steps)
        check(good, f"`disable_corrector` must be a list of steps, not {steps!r}.")
        object.__setattr__(self, "disable_corrector", tuple(steps))

    @property
    def order(self) -> int:
        return self.solver_order + 1 if self.corrector else self.solver_order

    @property
    def _integrator(self) -> Integrator:
        return Integrator("data" if self.predict_x0 else "noise")

    def _order_at(self, step: int, num_steps: int) -> int:
        left = num_steps - step
        return min(self.solver_order, step + 1, left if self.lower_order_final else self.solver_order)

    def _rows(self, process: Process, levels: list[Level]) -> Iterator[Row]:
        order, integrator = self.solver_order, self._integrator
        x, corrected, *older, x_0, _, _ = basis(order + 2)
        for i, (s, t) in enumerate(pairwise(levels)):
            new = integrator.output(s, x, x_0)
            x_s = x
            if i > 0 and self.corrector and i - 1 not in self.disable_corrector:
                before = levels[i - 1 :: -1][: self._order_at(i - 1, len(levels) - 1)]
                weights = self._corrector_weights(before, s)
                taken = [new, *older[: len(before)]]
                x_s = integrator.decay(before[0], s) * corrected
                x_s = x_s + sum(w * m for w, m in zip(weights, taken, strict=True))
            outputs = [new, *older]
            used = self._order_at(i, len(levels) - 1)
            yield Row(s, [self._predicted(x_s, levels[i::-1][:used], outputs[:used], t), x_s, *outputs[:order]])

    def _predicted(self, x: np.ndarray, nodes: list[Level], outputs: list[np.ndarray], t: Level) -> np.ndarray:
        s, integrator = nodes[0], self._integrator
        if self.solver_type == "bh1" and len(nodes) == 2 and t.sigma > 0:
            slope = (t.log_snr - s.log_snr) / (s.log_snr - nodes[1].log_snr)
            difference = slope * (outputs[0] - outputs[1])
            first = integrator.decay(s, t) * x + integrator.first(s, t) * outputs[0]
            return first + self._b_of_h(s, t) / 2 * difference
        return integrator.step(x, nodes, outputs, s, t, "midpoint")

    def _corrector_weights(self, before: list[Level], s: Level) -> np.ndarray:
        """Return the weights of the outputs at s and at the levels before it, in the step that led to s."""
        if len(before) > 1:
            return self._integrator.weights([s, *before], before[0], s)
        half = self._b_of_h(before[0], s) / 2
        return np.asarray([half, self._integrator.first(before[0], s) - half])

    def _b_of_h(self, s: Level, t: Level) -> float:
        """Return B(h) times what goes with it: the first integral for bh2, its short-step limit for bh1."""
        if self.solver_type == "bh2":
            return self._integrator.first(s, t)
        h = t.log_snr - s.log_snr
        return t.signal * h if self.predict_x0 else -t.sigma * h
