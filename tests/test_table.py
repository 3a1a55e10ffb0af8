"""A sampler's table: its shapes, its levels, its parts, rows that skip the network, and preconditioned networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_models import EPS, VE, X0, exact, nonlinear, own_schedule, run_jitted, run_table
from sampler_variants import DETERMINISTIC, STOCHASTIC, variants

from ddpm_jax import samplers
from ddpm_jax.samplers import DDIM, SAMPLERS, DDIMInverse, Table

KEY = jax.random.key(3)
X_T = np.random.default_rng(0).standard_normal((2, 4, 4, 1)).astype(np.float32)
# Samplers whose step is not exact where x_0 is known, and those that scale their noise by a knob.
INEXACT = {"variance_type": "fixed_large", "algorithm_type": "sde-dpmsolver", "s_noise": 1.003}


def handmade(**changes):
    """Two rows for one image, of which the second returns x_0_hat."""
    numbers = {
        "t": [3, 1],
        "x_0_coefs": [[0, 1], [0, 1]],
        "eps_coefs": [[1, 0], [1, 0]],
        "mix": [[[1, 0, 0, 0]], [[0, 1, 0, 0]]],
        "ends_step": [True, True],
        "levels": [[[0.6, 0.8], [0.8, 0.6]], [[0.8, 0.6], [1, 0]]],
    }
    return Table(**{name: np.asarray(value) for name, value in (numbers | changes).items()})


class TestShapes:
    def test_a_table_by_hand_runs(self):
        np.testing.assert_array_equal(samplers.run(lambda x, t: 0 * x + t, handmade(), X_T, KEY), 1.0)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"mix": np.zeros((2, 4))}, r"`mix` has shape \(2, 4\); it must be \[n, k, k \+ 3\]"),
            ({"mix": np.zeros((2, 1, 5))}, r"`mix` has shape \(2, 1, 5\); it must be \[n, k, k \+ 3\]"),
            ({"mix": np.zeros((3, 1, 4))}, r"`mix` has shape \(3, 1, 4\); beside .* must be \(2, 1, 4\), one entry a"),
            ({"t": np.zeros((2, 1))}, r"`t` has shape \(2, 1\)"),
            ({"x_0_coefs": np.zeros((2, 3))}, r"`x_0_coefs` has shape \(2, 3\); .* must be \(2, 2\)"),
            ({"eps_coefs": np.zeros((1, 2))}, r"`eps_coefs` has shape \(1, 2\)"),
            ({"ends_step": np.ones(3, bool)}, r"`ends_step` has shape \(3,\); .* must be \(2,\)"),
            ({"levels": np.zeros((2, 2))}, r"`levels` has shape \(2, 2\); .* must be \(2, 2, 2\)"),
            ({"log_variance": np.zeros(2)}, r"`log_variance` has shape"),
            ({"langevin": np.zeros(2)}, r"`langevin` has shape"),
            ({"in_scale": np.ones(1)}, r"`in_scale` has shape"),
            ({"evaluates": np.ones((2, 1), bool)}, r"`evaluates` has shape"),
            ({"index": np.arange(3)}, r"`index` has shape"),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
    )
    def test_arrays_that_do_not_go_together(self, changes, message):
        with pytest.raises(ValueError, match=message):
            handmade(**changes)

    def test_bounds_for_a_learned_range(self):
        with pytest.raises(ValueError, match="'learned_range' needs `log_variance`"):
            dataclasses.replace(handmade(), variance="learned_range")
        with pytest.raises(ValueError, match="`variance` must be one of .*, not 'large'"):
            dataclasses.replace(handmade(), variance="large")


@pytest.mark.filterwarnings("ignore:Ancestral sampling")
@pytest.mark.parametrize("name, knobs", [*variants(DETERMINISTIC), *variants(STOCHASTIC)])
def test_a_row_leads_from_the_level_that_it_sees_to_the_next(name, knobs):
    """Where the network knows x_0, the image S[0] = signal x_0 + noise keeps to the table's levels.

    By the algebra of the rows alone: each image of the state is its weight of x_0 and its weights of all noise so far.
    """
    table = SAMPLERS[name](num_steps=11, timestep_spacing="karras", **knobs).table(own_schedule(name))
    n, k = table.num_rows, table.mix.shape[1]
    state = np.zeros((k, 2 + n))  # x_0, the noise of x_T, the noise of each row
    state[0, :2] = table.levels[0, 0]
    x_0 = np.eye(1, 2 + n)[0]
    exact_noise = not any(knobs.get(knob) == value for knob, value in INEXACT.items()) and name != "karras-ve"
    for row in range(n):
        (signal, sigma), (next_signal, next_sigma) = table.levels[row]
        assert np.isclose(state[0, 0], signal, rtol=1e-9, atol=1e-9)
        assert np.isclose(np.linalg.norm(state[0, 1:]), sigma, rtol=1e-9) or not exact_noise or name == "score-sde-ve"
        eps = (state[0] - signal * x_0) / sigma
        state = table.mix[row] @ np.stack([*state, x_0, eps, np.eye(1, 2 + n, 2 + row)[0]])
        assert np.isclose(state[0, 0], next_signal, rtol=1e-9, atol=1e-9)
    # a step to the clean image forgets its noise; that of the last noise level has 1e-2 left
    assert np.isclose(np.linalg.norm(state[0, 1:]), next_sigma, atol=1e-4 if name == "score-sde-ve" else 1e-9)


def test_levels_of_an_inversion():
    """It sees its guess of the noisier image, and ends at unit variance."""
    table = DDIMInverse(num_steps=5, timestep_spacing="logsnr").table(VE)
    np.testing.assert_allclose(table.levels[:, 0, 1], table.t)
    np.testing.assert_allclose(table.levels[-1, 1], [1 / 50, 1])
    np.testing.assert_allclose(table.levels[:-1, 1], table.levels[:-1, 0])


def test_levels_of_the_predictor_corrector():
    """The state's own: what the network is told is a little less, by `sampling_eps`. A correction keeps the level."""
    table = SAMPLERS["score-sde-ve"](num_steps=6, sampling_eps=1e-2).table(VE)
    sigmas = np.geomspace(50, 0.01, 6)
    np.testing.assert_allclose(table.levels[:, 0, 1], np.repeat(sigmas, 2), rtol=1e-9)
    np.testing.assert_allclose(table.levels[:, 1, 1], [*np.repeat(sigmas, 2)[1:], 0], rtol=1e-9)
    assert np.all(table.t[2:] > 1.01 * table.levels[2:, 0, 1])


class TestPart:
    @pytest.mark.parametrize(
        "name, knobs", [("ddpm", {}), ("ddim", {"eta": 1.0}), ("euler-a", {}), ("heun", {"s_churn": 2.0})]
    )
    def test_parts_one_after_the_other_are_the_whole(self, name, knobs):
        """Their rows keep their noise, and a later part takes the image where the first one left it."""
        table = SAMPLERS[name](num_steps=10, **knobs).table(EPS)
        cut = int(np.flatnonzero(table.ends_step)[3]) + 1
        run = functools.partial(run_jitted, exact(EPS))
        whole, other = (run(table, X_T, key) for key in (KEY, jax.random.key(4)))
        assert np.abs(whole - other).max() > 1e-2
        middle = run(table.part(0, cut), X_T, KEY)
        np.testing.assert_allclose(run(table.part(cut), middle, KEY), whole, atol=1e-5)  # the rounding of two programs
        assert table.part(cut).num_rows == table.num_rows - cut and table.part(cut).init_scale == 1
        assert table.part(0, cut).init_scale == table.init_scale

    @pytest.mark.parametrize("name", ["dpmsolver++", "deis", "unipc", "pndm", "lms"])
    def test_a_part_inside_a_multistep_method_is_refused(self, name):
        table = SAMPLERS[name](num_steps=10).table(EPS)
        with pytest.raises(ValueError, match="begins with row 5 of a multistep method.*by its `timesteps`"):
            samplers.run(exact(EPS), table.part(5), X_T, KEY)
        samplers.run(exact(EPS), table.part(0, 5), X_T, KEY)

    def test_between_the_evaluations_of_one_step(self):
        table = SAMPLERS["heun"](num_steps=10).table(EPS)
        assert table.part(1).looks_back() and not table.part(2).looks_back()

    def test_an_empty_part_is_refused(self, untyped):
        with pytest.raises(ValueError, match=r"Rows 10 up to None of this table are none; it has the rows 0 .. 9"):
            DDIM(num_steps=10).table(EPS).part(10)
        with pytest.raises(TypeError, match="`start` must be an integer"):
            DDIM(num_steps=10).table(EPS).part(0.5)


@pytest.mark.parametrize("name", [*SAMPLERS])
def test_padding_changes_nothing(name):
    """The rows that are added are passed over, and evaluate no network: it would put out NaN."""
    schedule = own_schedule(name)
    table = SAMPLERS[name](num_steps=6).table(schedule)
    padded = table.padded(table.num_rows + 5)
    assert padded.num_rows == table.num_rows + 5 and padded.num_evals == table.num_evals
    poisoned = dataclasses.replace(padded, t=np.where(padded.evaluates, padded.t, np.nan))
    run = functools.partial(run_jitted, exact(schedule))
    plain = run(table, X_T, KEY)
    # another program: rounding, which the first steps enlarge by 1 / sqrt(alpha_bar) = 157
    np.testing.assert_allclose(run(poisoned, X_T, KEY), plain, rtol=1e-4, atol=1e-4)


def test_padding_does_not_cut():
    with pytest.raises(ValueError, match="`num_rows` is 9; this table has 10 rows already"):
        DDIM(num_steps=10).table(EPS).padded(9)


def test_a_table_is_an_argument():
    """Other tables of the same shape share one trace, whatever their numbers."""
    traces = []

    def net_fn(x, t):
        traces.append(t)
        return nonlinear(x, t)

    jitted = jax.jit(lambda table: samplers.run(net_fn, table, X_T, KEY))
    tables = [DDIM(num_steps=8, **knobs).table(EPS) for knobs in ({}, {"eta": 0.5}, {"clip": 0.5})]
    runs = [jitted(table) for table in tables]
    assert len(traces) == 1
    for table, run in zip(tables, runs, strict=True):
        np.testing.assert_allclose(run, samplers.run(nonlinear, table, X_T, KEY), rtol=1e-4, atol=1e-4)  # rounding
    assert np.abs(runs[0] - runs[1]).max() > 1e-2 and np.abs(runs[0] - runs[2]).max() > 1e-2


def joined(*tables):
    """One table after the other, each row with noise of its own."""
    tables = [table.padded(table.num_rows) for table in tables]  # which says of each row that it evaluates
    arrays = ("t", "x_0_coefs", "eps_coefs", "mix", "ends_step", "levels", "evaluates")
    joint = {name: np.concatenate([getattr(table, name) for table in tables]) for name in arrays}
    return dataclasses.replace(tables[0], index=None, **joint)


def up(low, high):
    """A row that adds noise alone: q(x_t | x_s) (RePaint's way up, Lugmayr et al. 2022, algorithm 1)."""
    (signal_s, sigma_s), (signal_t, sigma_t) = low, high
    std = np.sqrt(sigma_t**2 - (signal_t / signal_s * sigma_s) ** 2)
    return Table(
        t=np.array([-1.0]),  # a network that is asked about it answers NaN
        x_0_coefs=np.zeros((1, 2)),
        eps_coefs=np.zeros((1, 2)),
        mix=np.array([[[signal_t / signal_s, 0, 0, std]]]),
        ends_step=np.array([True]),
        levels=np.array([[low, high]]),
        evaluates=np.array([False]),
    )


class TestRowsThatGoUp:
    """They have the marginal of the forward process, and cost no evaluation."""

    MEAN, STD = 0.3, 0.25

    def asked(self, x, t):
        return jnp.where(t < 0, jnp.nan, exact(EPS)(x, t))

    def tables(self):
        down = DDIM(num_steps=100, clip=None).table(EPS)
        low, high = down.levels[80, 0], down.levels[50, 0]
        return down, low, high

    def test_up_alone(self):
        _, low, high = self.tables()
        x_s = low[0] * self.MEAN + np.hypot(low[0] * self.STD, low[1]) * np.random.default_rng(0).standard_normal(
            (1, 100, 100, 1)
        )
        x_t = run_table(self.asked, up(low, high), x_s.astype(np.float32), KEY)
        # 10,000 pixels: four standard errors
        assert abs(x_t.mean() - high[0] * self.MEAN) < 0.04 * np.hypot(high[0] * self.STD, high[1])
        assert abs(x_t.std() / np.hypot(high[0] * self.STD, high[1]) - 1) < 0.03

    def test_down_and_up_and_down_again(self):
        """A loop on the way changes the images, and not what they are drawn from."""
        down, low, high = self.tables()
        table = joined(down.part(0, 80), up(low, high), down.part(50, 80), up(low, high), down.part(50))
        assert table.num_rows == 100 + 2 * 31 and table.num_evals == 100 + 2 * 30
        x_T = np.random.default_rng(0).standard_normal((1, 70, 70, 1)).astype(np.float32)
        x = run_table(self.asked, table, x_T, KEY)
        assert abs(x.mean() - self.MEAN) < 0.011  # three standard errors
        assert abs(x.std() - self.STD) < 0.02  # with the bias of 100 first-order steps
        assert np.abs(x - run_table(self.asked, down, x_T, KEY)).max() > 0.1

    def test_the_network_is_not_run(self):
        down, low, high = self.tables()
        told = []
        net_fn = lambda x, t: (
            exact(EPS)(x, t)
            + 0
            * jax.experimental.io_callback(
                lambda t: told.append(float(t)) or np.float32(0), jax.ShapeDtypeStruct((), jnp.float32), t
            )
        )
        samplers.run(net_fn, joined(down.part(78, 80), up(low, high), down.part(50, 52)), X_T, KEY).block_until_ready()
        jax.effects_barrier()
        assert told == pytest.approx([*down.t[78:80], *down.t[50:52]])


class TestPreconditionedNetworks:
    """A row's c_in, c_skip, c_out and c_noise (Karras et al. 2022, table 1 and eq. 7)."""

    def test_an_edm_network_is_four_numbers_a_row(self):
        """F(c_in x, c_noise) with D = c_skip x + c_out F samples what D samples."""
        sigma_data = 0.5
        plain = SAMPLERS["heun"](num_steps=10, timestep_spacing="karras").table(VE)
        sigma = plain.levels[:, 0, 1]
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / np.hypot(sigma, sigma_data)
        c_in, c_noise = 1 / np.hypot(sigma, sigma_data), np.log(sigma) / 4
        edm = dataclasses.replace(
            plain,
            t=c_noise,
            in_scale=c_in,
            x_0_coefs=np.stack([c_skip, c_out], axis=1),
            eps_coefs=np.stack([(1 - c_skip) / sigma, -c_out / sigma], axis=1),
        )

        def network(y, c_noise):
            """F of the exact denoiser of N(0.3, 0.25^2)."""
            sigma = jnp.exp(4 * c_noise)
            c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
            c_out = sigma * sigma_data / jnp.sqrt(sigma**2 + sigma_data**2)
            x = y * jnp.sqrt(sigma**2 + sigma_data**2)
            denoised = x + sigma**2 * exact(VE)(x, sigma)
            return (denoised - c_skip * x) / c_out

        assert edm.switches.scales_input and not plain.switches.scales_input
        with jax.enable_x64(True):
            x_T = X_T.astype(np.float64)
            np.testing.assert_allclose(
                run_table(network, edm, x_T), run_table(exact(VE), plain, x_T), rtol=1e-8, atol=1e-8
            )

    def test_a_scale_of_one_changes_no_bit(self):
        table = DDIM(num_steps=10).table(EPS)
        scaled = dataclasses.replace(table, in_scale=np.ones(10))
        runs = [samplers.run(nonlinear, one, X_T, KEY) for one in (table, scaled)]
        np.testing.assert_array_equal(*runs)

    def test_it_acts_on_what_the_network_sees_alone(self):
        table = DDIM(timesteps=(500,), clip=None).table(X0)
        half = dataclasses.replace(table, in_scale=np.array([0.5]))
        np.testing.assert_allclose(samplers.run(lambda x, t: x, half, X_T, KEY), 0.5 * X_T, rtol=1e-6)
