"""How fast samplers converge, on models whose flow and marginals are known: a Gaussian, and a mixture of two."""

import functools

import jax
import numpy as np
import pytest
from known_models import EPS, Mixture, exact, mixture, mixture_flow, own_schedule, run_table
from sampler_variants import DETERMINISTIC, STOCHASTIC, variants

from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import SAMPLERS


def test_every_sampler_is_in_a_list_of_variants():
    assert set(DETERMINISTIC) | set(STOCHASTIC) == set(SAMPLERS)


def to_the_least_noise(name, knobs):
    """A sampler of some steps on a grid that is uniform in log-SNR, which ends at the level of timestep 0."""
    ends = {"set_alpha_to_one": False} if name in ("ddim", "pndm") else {"final_sigmas_type": "sigma_min"}
    return functools.partial(SAMPLERS[name], timestep_spacing="logsnr", **ends, **knobs)


def slope(make, net_fn, flow, counts):
    """The order that two runs show against the exact flow, under x64, and their errors."""
    with jax.enable_x64(True):
        start = np.linspace(-2, 2, 50).reshape(1, 50, 1, 1)
        errors = []
        for count in counts:
            table = make(num_steps=count).table(EPS)
            ends = flow(start * table.init_scale, table.levels[0, 0], table.levels[-1, 1])
            errors.append(np.abs(run_table(net_fn, table, start) - ends).max())
    return np.log2(errors[0] / errors[1]) / np.log2(counts[1] / counts[0]), errors


def gaussian_flow(x, start, end):
    """The flow of N(0.3, 0.25^2) keeps the quantile."""
    (signal, sigma), (last_signal, last_sigma) = start, end
    z = (x - 0.3 * signal) / np.hypot(0.25 * signal, sigma)
    return 0.3 * last_signal + np.hypot(0.25 * last_signal, last_sigma) * z


FIRST = {name: knobs[:1] for name, knobs in DETERMINISTIC.items()}


@pytest.mark.parametrize("name, knobs", variants(FIRST))
def test_order(name, knobs):
    """The error against the closed-form flow of a Gaussian falls with the stated order."""
    make = to_the_least_noise(name, knobs)
    shown, errors = slope(make, exact(EPS), gaussian_flow, (120, 240))
    order = make().order
    assert shown > order - 0.2, errors  # the next order still shows in 120 steps
    assert shown < order + 0.2 or order > 2, errors  # a Gaussian's symmetry gives some third-order ones almost a fourth


@pytest.mark.parametrize("name, knobs", variants(DETERMINISTIC))
def test_order_on_a_mixture(name, knobs):
    """The flow is not linear here: errors do not cancel, and the order is the stated one from both sides."""
    make = to_the_least_noise(name, knobs)
    order = make().order
    counts = (120, 240) if order < 4 else (240, 480)  # a fourth order shows later: 3.7 in 120 steps, 3.9 in 240
    shown, errors = slope(make, mixture(EPS), mixture_flow, counts)
    assert abs(shown - order) < 0.2, errors


@pytest.mark.filterwarnings("ignore:Ancestral sampling")
@pytest.mark.parametrize("name, knobs", [*variants(STOCHASTIC), *variants(FIRST)])
def test_reaches_the_mean_and_spread_of_the_data(name, knobs):
    """Exact eps of N(0.3, 0.25^2): 4,900 pixels end with that mean and spread."""
    schedule = own_schedule(name)
    large = knobs.get("variance_type") == "fixed_large"  # it needs every step
    table = SAMPLERS[name](num_steps=1000 if large else 200, **knobs).table(schedule)
    x_T = np.random.default_rng(0).standard_normal((1, 70, 70, 1)).astype(np.float32)
    x = run_table(exact(schedule), table, x_T, jax.random.key(1))
    assert abs(x.mean() - 0.3) < 0.011  # three standard errors of the mean
    # the first-order bias of 200 steps: 0.01; 0.03 where steps are grouped, 0.02 where churn makes them longer
    coarse = knobs.get("singlestep") or (name == "euler" and "s_churn" in knobs)
    assert abs(x.std() - 0.25) < (0.035 if coarse else 0.02)


MIXTURES = [*variants({name: knobs[:1] for name, knobs in STOCHASTIC.items()}), *variants(FIRST)]


@pytest.mark.slow  # seconds each; the fast suite has the moments of a Gaussian, and orders on this mixture
@pytest.mark.parametrize("name, knobs", MIXTURES)
def test_reaches_the_moments_of_a_mixture(name, knobs):
    """Mean, spread and skewness of 10,000 pixels, after 400 steps."""
    schedule = own_schedule(name)
    table = SAMPLERS[name](num_steps=400, **knobs).table(schedule)
    x_T = np.random.default_rng(0).standard_normal((1, 100, 100, 1)).astype(np.float32)
    x = run_table(mixture(schedule), table, x_T, jax.random.key(1)).astype(np.float64)
    mean, std, third = Mixture().moments()
    # three standard errors are 0.014, 0.007 and 0.005; the rest is the bias of 400 steps
    assert abs(x.mean() - mean) < 0.02
    assert abs(x.std() - std) < 0.015
    assert abs(((x - x.mean()) ** 3).mean() - third) < 0.01


class TestStrongOrder:
    """Stochastic samplers follow the path of a fine reference on the same Brownian motion.

    Noise that does not depend on the state ("additive") gives Euler's method, and any other that takes the noise of a
    step as one increment, the strong order 1 (Kloeden & Platen 1992, section 10.2): the root mean square error at the
    end falls with the first power of the step. (Multistep rules of the drift keep it: more would take the noise's
    integrals over the step.) A wrong scale of the noise, or of its decay, would leave an error of order 0.
    """

    QUICK = [
        ("ddpm", {"clip": None}),
        ("ddim", {"clip": None, "eta": 0.5}),
        ("euler", {"s_churn": 5.0}),
        ("euler-a", {}),
        ("score-sde-ve", {"correct_steps": 0}),  # Langevin corrections are no steps of the equation
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++"}),
    ]
    SLOW = [
        ("heun", {"s_churn": 5.0}),
        ("karras-ve", {"s_churn": 10.0, "s_tmin": 0.0, "s_tmax": np.inf, "s_noise": 1.0}),
        ("kdpm2-a", {}),
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
        ("dpmsolver++", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
        ("dpmsolver", {"algorithm_type": "sde-dpmsolver", "solver_order": 1}),
        ("dpmsolver", {"algorithm_type": "sde-dpmsolver"}),
    ]
    FINE, COARSE = 4096, (64, 512)

    def test_every_stochastic_sampler_is_in_the_list(self):
        assert {name for name, _ in self.QUICK + self.SLOW} == set(STOCHASTIC)

    def table(self, name, knobs, steps):
        """Steps between the noisiest timestep and timestep 0, uniform in log-SNR, and a last one without noise."""
        total = self.FINE + 1
        if name == "score-sde-ve":
            schedule = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0, num_train_timesteps=total)
        else:  # the usual process, told apart more finely
            schedule = ScheduleConfig(num_train_timesteps=total, beta_start=2.5e-5, beta_end=5e-3)
        return SAMPLERS[name](num_steps=steps + 1, timestep_spacing="logsnr", **knobs).table(schedule), schedule

    @pytest.mark.parametrize("name, knobs", [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
    def test_is_one(self, name, knobs):
        generator = np.random.default_rng(0)
        x, increments = generator.standard_normal((1, 400, 1, 1)), generator.standard_normal((self.FINE + 1, 400))
        fine, schedule = self.table(name, knobs, self.FINE)
        weights = fine.mix[fine.ends_step, 0, -1]

        def end(table, increments):
            noise = np.zeros((table.num_rows, *x.shape))
            noise[table.ends_step] = increments[:, None, :, None, None]
            return run_table(mixture(schedule), table, x / table.init_scale * fine.init_scale, noise=noise)

        with jax.enable_x64(True):
            reference, errors = end(fine, increments), []
            for steps in self.COARSE:
                parts = weights[:-1].reshape(steps, -1, 1)  # of the noise of a coarse step, by the fine ones in it
                sums = (parts * increments[:-1].reshape(steps, -1, 400)).sum(1) / np.sqrt((parts**2).sum(1))
                table, _ = self.table(name, knobs, steps)
                errors.append(np.sqrt(((end(table, np.append(sums, increments[-1:], 0)) - reference) ** 2).mean()))
        shown = np.log2(errors[0] / errors[1]) / np.log2(self.COARSE[1] / self.COARSE[0])
        assert abs(shown - 1) < 0.2, errors  # 400 paths, some of which end in the other component
