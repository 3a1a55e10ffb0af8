"""Samplers: a model with a known answer, and identities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_models import (
    EPS,
    SPACINGS,
    VE,
    X0,
    V,
    dummy,
    exact,
    gaussian,
    gaussian_start,
    own_schedule,
    run,
    run_table,
)

from ddpm_jax import samplers
from ddpm_jax.config import ScheduleConfig
from ddpm_jax.samplers import DDIM, DDPM, SAMPLERS, DDIMInverse
from ddpm_jax.samplers.grids import Process
from ddpm_jax.schedule import alphas_cumprod, posterior_coefficients


def test_learned_variance_is_the_second_half_of_the_channels():
    model = lambda x, t: jnp.concatenate([0 * x, 0 * x + 0.25], axis=-1)
    table = DDPM(variance_type="learned", timesteps=(500, 0), clip=None).table(X0)
    noise = np.random.default_rng(0).standard_normal((2, 1, 4, 4, 1)).astype(np.float32)
    # predicted x_0 is 0, so that x_500 = 0 leads to 0.5 noise, whose posterior mean at the end is 0
    x = samplers.run(model, table.part(0, 1), np.zeros((1, 4, 4, 1), np.float32), jax.random.key(0), noise=noise[:1])
    np.testing.assert_allclose(x, 0.5 * noise[0], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "score-sde-ve"])
def test_variance_exploding_networks_too(name):
    table = SAMPLERS[name](num_steps=200, timestep_spacing="logsnr").table(VE)
    x_T = np.random.default_rng(0).standard_normal((1, 70, 70, 1)).astype(np.float32)
    x = run_table(exact(VE), table, x_T, jax.random.key(1))
    assert table.t[0] == pytest.approx(50.0)  # it is told the noise level
    assert abs(x.mean() - 0.3) < 0.011 and abs(x.std() - 0.25) < 0.02


@pytest.mark.parametrize("name", SAMPLERS)
class TestEverySampler:
    """What holds for anything listed in SAMPLERS."""

    @pytest.mark.parametrize("schedule", [V, X0])
    def test_prediction_types_agree(self, name, schedule):
        if name == "score-sde-ve":
            return  # a variance-exploding network predicts the score, always
        sampler = SAMPLERS[name](num_steps=20)
        x_T = gaussian_start()
        by_eps = run(sampler, EPS, model=gaussian(EPS), start=x_T, seed=1)
        other = run(sampler, schedule, model=gaussian(schedule), start=x_T, seed=1)
        # 1 / sqrt(alpha_bar) is 100 at first, times 1e-6; methods with fast-growing weights on it lose one digit more
        np.testing.assert_allclose(by_eps, other, atol=1e-3)

    def test_no_noise_is_left_at_the_end(self, name):
        """Other noise in the last row changes nothing, whatever the grid."""
        schedule = own_schedule(name)
        x_T = np.random.default_rng(0).standard_normal((1, 4, 4, 1)).astype(np.float32)
        for spacing in SPACINGS:
            table = SAMPLERS[name](num_steps=7, timestep_spacing=spacing).table(schedule)
            noise = np.random.default_rng(1).standard_normal((table.num_rows, *x_T.shape)).astype(np.float32)
            other = noise.copy()
            other[-1] += 100
            runs = [run_table(exact(schedule), table, x_T, noise=draws) for draws in (noise, other)]
            np.testing.assert_array_equal(*runs)

    @pytest.mark.parametrize("spacing", SPACINGS)
    def test_grids(self, name, spacing):
        """Every grid falls and leads to the data."""
        schedule = own_schedule(name)
        sampler = SAMPLERS[name](num_steps=100, timestep_spacing=spacing, clip=None)
        table = sampler.table(schedule)
        quiet = {"s_churn": 0.0} if hasattr(sampler, "s_churn") else {}  # churn goes up again
        grid = dataclasses.replace(sampler, **quiet).table(schedule)
        begins_step = np.append(True, grid.ends_step[:-1])
        signals, sigmas = np.vstack([grid.levels[begins_step, 0], grid.levels[-1:, 1]]).T
        assert np.all(np.diff(sigmas / signals) < 0) or name == "pndm"  # whose end is the level of timestep 0
        x_T = np.random.default_rng(0).standard_normal((1, 32, 32, 1)).astype(np.float32)
        x = run_table(exact(schedule), table, x_T, jax.random.key(1))
        assert abs(x.mean() - 0.3) < 0.03
        # grids that hardly visit low noise leave the spread to a step that cannot make it; KDPM2 overshoots there
        assert 0.1 < x.std() < 0.45

    def test_custom_grid(self, name):
        schedule = own_schedule(name)
        table = SAMPLERS[name](timesteps=(900.5, 300.0, 20.25)).table(schedule)
        expected = Process.of(schedule).at_time(900.5).t
        assert table.t[0] == pytest.approx(expected, rel=1e-3)  # sampling_eps shortens time
        assert table.ends_step.sum() == 3

    def test_clip_and_thresholding_act(self, name):
        """A step to the clean image returns x_0_hat: clipped, or thresholded image by image, as numpy does it."""
        schedule = own_schedule(name)
        model = lambda x, t: 0.2 * x if schedule.kind == "vp" else -0.2 * x / t
        # no Langevin steps, whose own length depends on x_0_hat
        knobs = {"pndm": {"set_alpha_to_one": True}, "score-sde-ve": {"correct_steps": 0}}.get(name, {})
        spacing = {} if name == "score-sde-ve" else {"timesteps": (300,)}
        make = functools.partial(SAMPLERS[name], **(spacing or {"num_steps": 1}), **knobs)
        start = gaussian_start()
        end = lambda **transform: run(make(**transform), schedule, model=model, start=start, seed=1)
        most = np.array([0.8, 1.5, 2.5, 4], np.float32).reshape(4, 1, 1, 1)  # of |x_0_hat| in each image
        start = start * most / np.abs(end(clip=None)).max((1, 2, 3), keepdims=True)
        x_0_hat = end(clip=None)
        np.testing.assert_allclose(np.abs(x_0_hat).max((1, 2, 3), keepdims=True), most, rtol=1e-3)
        np.testing.assert_allclose(end(clip=0.5), np.clip(x_0_hat, -0.5, 0.5), rtol=1e-4, atol=1e-4)
        ratio = {"dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.7}
        limit = np.quantile(np.abs(x_0_hat).reshape(4, -1), 0.8, axis=1).clip(1.0, 1.7).reshape(4, 1, 1, 1)
        assert len(np.unique(limit)) >= 3 and limit.max() == np.float32(1.7)
        expected = np.clip(x_0_hat, -limit, limit) / limit
        np.testing.assert_allclose(end(clip=None, thresholding=True, **ratio), expected, rtol=1e-4, atol=1e-4)

    def test_networks_with_a_learned_variance(self, name):
        """The second half of their channels is passed over by samplers that do not use it."""
        schedule = own_schedule(name)
        plain = exact(schedule)
        learned = lambda x, t: jnp.concatenate([plain(x, t), jnp.tanh(x)], axis=-1)
        one, other = (run(SAMPLERS[name](num_steps=5), schedule, model=model, seed=1) for model in (plain, learned))
        np.testing.assert_array_equal(one, other)

    def test_num_steps_is_checked(self, name, untyped):
        for steps in (0, -1, 1001, 2.5, True):
            with pytest.raises(ValueError, match="`num_steps` must be an integer from 1 to 1000"):
                SAMPLERS[name](num_steps=steps).table(own_schedule(name))

    def test_one_and_two_steps(self, name):
        for steps in (1, 2):
            table = SAMPLERS[name](num_steps=steps).table(own_schedule(name))
            assert table.ends_step.sum() == steps

    def test_noise_of_another_shape_is_refused(self, name):
        table = SAMPLERS[name](num_steps=3).table(own_schedule(name))
        wrong = np.zeros((table.num_evals + 1, 1, 2, 2, 1))
        with pytest.raises(ValueError, match="`noise` has shape"):
            samplers.run(dummy, table, np.zeros((1, 2, 2, 1)), jax.random.key(0), noise=wrong)

    def test_other_processes_are_refused(self, name):
        with pytest.raises(ValueError, match="of another kind|variance-exploding"):
            SAMPLERS[name]().table(ScheduleConfig(kind="other"))

    def test_half_precision_state_keeps_its_timesteps(self, name):
        table = SAMPLERS[name](timestep_spacing="trailing", num_steps=20).table(own_schedule(name))
        np.testing.assert_allclose(np.asarray(table.rows(jnp.bfloat16).t), table.t, rtol=1e-6)

    def test_zero_terminal_snr(self, name):
        """A velocity network starts from pure noise; an epsilon network cannot."""
        if name == "score-sde-ve":
            return
        sampler = SAMPLERS[name](num_steps=20, timestep_spacing="trailing")
        schedule = ScheduleConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction")
        x = run(sampler, schedule, model=gaussian(schedule), start=gaussian_start(), seed=1)
        assert np.all(np.isfinite(x)) and abs(x.mean() - 0.3) < 0.05
        with pytest.raises(ValueError, match="zero terminal SNR"):
            sampler.table(ScheduleConfig(rescale_betas_zero_snr=True))


def test_score_sde_ve_is_for_exploding_networks():
    with pytest.raises(ValueError, match="samples variance-exploding networks"):
        samplers.ScoreSdeVe().table(EPS)


def test_langevin_steps_do_not_depend_on_the_batch():
    table = samplers.ScoreSdeVe(num_steps=5).table(VE)
    x_T = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    together = samplers.run(exact(VE), table, x_T, jax.random.key(0))
    alone = samplers.run(exact(VE), table, x_T[2:], jax.random.key(0), indices=np.array([2]))
    np.testing.assert_allclose(together[2:], alone, rtol=1e-6)


class TestInversion:
    """x_0 to x_T and back."""

    def errors(self, **knobs):
        x_0 = (0.3 + 0.25 * np.random.default_rng(0).standard_normal((1, 8, 8, 1))).astype(np.float32)
        grid = {"num_steps": 50, "timestep_spacing": "trailing"}
        there = run_table(gaussian(EPS), DDIMInverse(**grid, **knobs).table(EPS), x_0)
        back = run_table(gaussian(EPS), DDIM(**grid, clip=None).table(EPS), there)
        return np.abs(back - x_0).max(), there

    def test_one_iteration_is_of_first_order(self):
        error, x_T = self.errors(num_iterations=1)
        assert 1e-4 < error < 0.1
        assert 0.7 < x_T.std() < 1.3

    def test_iterations_converge_to_the_exact_inverse(self):
        errors = [self.errors(num_iterations=count)[0] for count in (1, 4, 12)]
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 2e-4  # float32, through 1 / sqrt(alpha_bar) = 157

    def test_prediction_types_agree(self):
        x_0 = (0.3 + 0.25 * np.random.default_rng(0).standard_normal((1, 8, 8, 1))).astype(np.float32)
        runs = [run_table(gaussian(schedule), DDIMInverse().table(schedule), x_0) for schedule in (EPS, V, X0)]
        np.testing.assert_allclose(runs[0], runs[1], atol=1e-4)
        np.testing.assert_allclose(runs[0], runs[2], atol=1e-3)  # x_0 is known to 1e-7, over sigma = 0.01


class TestIdentities:
    """Samplers that are the same thing by another name."""

    def same(self, one, other, schedule=EPS, **grid):
        tables = [sampler.table(schedule) for sampler in (one, other)]
        x_T = np.random.default_rng(0).standard_normal((1, 4, 4, 1))
        with jax.enable_x64(True):
            runs = [run_table(gaussian(schedule), table, x_T) for table in tables]
        np.testing.assert_allclose(*runs, rtol=1e-9, atol=1e-9)

    GRID = {"timesteps": (999, 800, 500, 250, 100, 20), "clip": None}

    def test_ddim_is_dpm_solver_pp_of_order_1(self):
        self.same(DDIM(**self.GRID), samplers.DPMSolverPP(solver_order=1, **self.GRID))

    def test_ddim_is_dpm_solver_of_order_1(self):
        self.same(DDIM(**self.GRID), samplers.DPMSolver(solver_order=1, **self.GRID))

    def test_ddim_is_unipc_without_corrector_of_order_1(self):
        self.same(DDIM(**self.GRID), samplers.UniPC(solver_order=1, corrector=False, **self.GRID))

    def test_ddim_is_deis_of_order_1(self):
        self.same(DDIM(**self.GRID), samplers.DEIS(solver_order=1, **self.GRID))

    def test_ddim_is_lms_of_order_1(self):
        x_T = {"one": DDIM(**self.GRID), "other": samplers.LMS(solver_order=1, **self.GRID)}
        tables = {name: dataclasses.replace(sampler.table(EPS), init_scale=1.0) for name, sampler in x_T.items()}
        with jax.enable_x64(True):
            start = np.random.default_rng(0).standard_normal((1, 4, 4, 1))
            runs = [run_table(gaussian(EPS), table, start) for table in tables.values()]
        np.testing.assert_allclose(*runs, rtol=1e-9, atol=1e-9)

    def test_ddpm_is_the_data_sde_of_order_1(self):
        """sde-dpmsolver++ of order 1 is ancestral sampling (Lu et al. 2022b, appendix)."""
        self.same(
            DDPM(**self.GRID), samplers.DPMSolverPP(solver_order=1, algorithm_type="sde-dpmsolver++", **self.GRID)
        )

    def test_ddpm_is_euler_ancestral(self):
        one = DDPM(**self.GRID).table(EPS)
        other = dataclasses.replace(samplers.EulerAncestral(**self.GRID).table(EPS), init_scale=1.0)
        np.testing.assert_allclose(one.mix, other.mix, atol=1e-10)

    @pytest.mark.parametrize("order", [1, 2, 3])
    def test_dpm_solver_heun_is_deis(self, order):
        heun = {"solver_type": "heun"} if order > 1 else {}  # of order 1 there is one rule
        self.same(
            samplers.DPMSolver(solver_order=order, **heun, **self.GRID),
            samplers.DEIS(solver_order=order, **self.GRID),
        )

    @pytest.mark.parametrize("predict_x0, solver", [(True, samplers.DPMSolverPP), (False, samplers.DPMSolver)])
    def test_unipc_predictors_are_dpm_solvers(self, predict_x0, solver):
        for order in (2, 3):  # by order 3 the predictor's coefficients are those of the interpolating polynomial
            self.same(
                samplers.UniPC(solver_order=order, corrector=False, predict_x0=predict_x0, **self.GRID),
                solver(solver_order=order, **self.GRID),
            )

    def test_euler_is_ddim_on_its_grid(self):
        one = DDIM(**self.GRID).table(EPS)
        other = samplers.Euler(**self.GRID).table(EPS)
        x_0_from_eps = lambda table: table.mix[:, 0, 0] + table.mix[:, 0, 1] * table.x_0_coefs[:, 0]
        np.testing.assert_allclose(x_0_from_eps(one), x_0_from_eps(other), rtol=1e-9)

    def test_logsnr_is_the_exponential_grid(self):
        one, other = (samplers.DPMSolverPP(timestep_spacing=name).table(EPS) for name in ("logsnr", "exponential"))
        np.testing.assert_array_equal(one.mix, other.mix)


def test_a_negative_learned_variance_at_the_end_does_no_harm():
    model = lambda x, t: jnp.concatenate([0 * x, 0 * x - 0.25], axis=-1)
    table = DDPM(variance_type="learned", timesteps=(0,)).table(X0)
    x = samplers.run(model, table, np.ones((1, 4, 4, 1), np.float32), jax.random.key(0))
    np.testing.assert_array_equal(x, 0)


def test_ddim_with_eta_1_and_clipped_output_is_ddpm():
    ddim = DDIM(num_steps=100, eta=1.0, use_clipped_model_output=True).table(EPS)
    ddpm = DDPM(num_steps=100).table(EPS)
    combine = lambda table: table.mix[:, 0, [0, 1, 3]]
    np.testing.assert_allclose(combine(ddim), combine(ddpm), atol=1e-10)  # float64 algebra of alpha_bar down to 4e-5


def test_ddpm_rows_are_the_posterior():
    table = DDPM(num_steps=4).table(EPS)
    alpha_bar = alphas_cumprod(EPS)
    assert table.t.tolist() == [750, 500, 250, 0]
    from_x_0, from_x_t, variance = posterior_coefficients(alpha_bar[500], alpha_bar[250])
    np.testing.assert_allclose(table.mix[1, 0], [from_x_t, from_x_0, 0, np.sqrt(variance)], rtol=1e-14)
    np.testing.assert_array_equal(table.mix[-1, 0], [0, 1, 0, 0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_programs_of_deterministic_solvers_draw_nothing(name):
    """Whether a table draws is the class's, not its numbers': eta 0 and eta 1 share a program."""
    exploding = ScheduleConfig(kind="ve", sigma_min=0.01, sigma_max=50.0)
    table = SAMPLERS[name](num_steps=3).table(exploding if name in ("score-sde-ve", "karras-ve") else EPS)
    x, key = jnp.zeros((1, 2, 2, 1)), jax.random.key(0)
    program = str(jax.make_jaxpr(lambda x, key: samplers.run(lambda x, t: x, table, x, key))(x, key))
    never = ("dpmsolver++", "dpmsolver", "deis", "unipc", "pndm", "lms", "kdpm2")
    assert ("random_bits" in program) == table.draws == (name not in never)
    if table.draws and table.variance == "fixed":
        with pytest.raises(ValueError, match="`draws` is False, but"):
            noisy = np.concatenate([table.mix[..., :-1], np.ones_like(table.mix[..., -1:])], axis=-1)
            dataclasses.replace(table, mix=noisy, draws=False)
