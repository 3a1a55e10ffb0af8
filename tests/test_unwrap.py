"""State dicts as people keep them: under prefixes, in dicts of trainers, as tensors of torch, and with NaN."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import make_params
from test_checkpoint import STEM, equal, write_flat

import ddpm_jax
from ddpm_jax.checkpoint import from_state_dict, load, save, to_state_dict

PARAMS = make_params()
TENSORS = to_state_dict(PARAMS)
HALVED = {name: value / 2 for name, value in TENSORS.items()}


def under(prefix, tensors=TENSORS):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


PREFIXES = ["_orig_mod.", "module.", "module._orig_mod.", "model.", "unet.", "ema.", "net.diffusion.", "a.b.c.d."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_taken_off(prefix, recwarn):
    assert equal(from_state_dict(under(prefix), PARAMS.config), PARAMS)
    assert not recwarn.list


def test_wrappers_within_names():
    """Blocks that were compiled, checkpointed or sharded by themselves."""
    wrapped = {name.replace("_blocks.0.", "_blocks.0._orig_mod."): value for name, value in TENSORS.items()}
    wrapped = {name.replace("resnets.0.", "resnets.0._checkpoint_wrapped_module."): wrapped[name] for name in wrapped}
    assert wrapped.keys() != TENSORS.keys()
    assert equal(from_state_dict(under("net._fsdp_wrapped_module.", wrapped), PARAMS.config), PARAMS)
    name = "down_blocks.0.resnets.0.conv1.bias"
    twice = TENSORS | {name.replace("resnets.0", "resnets.0._orig_mod"): TENSORS[name] + 1}
    with pytest.raises(ValueError, match=f"hold `{name}` twice, once as `down_blocks.0.resnets.0._orig_mod"):
        from_state_dict(twice, PARAMS.config)


def test_a_prefix_before_old_names():
    old = {name.replace("mid_block.", "mid.").replace(".to_q.", ".query."): value for name, value in TENSORS.items()}
    assert equal(from_state_dict(under("module.", old), PARAMS.config), PARAMS)


def test_a_prefix_in_a_file(tmp_path):
    folder = write_flat(tmp_path / "x", PARAMS)
    plain = load(folder)
    safetensors.numpy.save_file(under("_orig_mod."), folder / f"{STEM}.safetensors")
    assert equal(load(folder), plain)


NESTED = {
    "state_dict": {"state_dict": TENSORS},
    "a trainer's": {"model": TENSORS, "step": 5, "note": "x", "lr": [1e-3], "best": None},
    "averaged alone": {"ema": {"module": TENSORS, "n_averaged": np.array(3)}},
    "Lightning's": {"state_dict": under("model."), "epoch": 3, "callbacks": {}, "optimizer_states": []},
    "the same twice": {"model": TENSORS, "ema": TENSORS},
}


@pytest.mark.parametrize("name", NESTED)
def test_dicts_around_the_network(name, recwarn):
    assert equal(from_state_dict(NESTED[name], PARAMS.config), PARAMS)
    assert not recwarn.list


def test_tensors_that_are_left_out_are_named():
    moments = {"state": {0: {"exp_avg": np.zeros(3), "exp_avg_sq": np.zeros(3)}}}
    with pytest.warns(UserWarning, match=r"Those of `optimizer` \(2\) are left out"):
        assert equal(from_state_dict({"model": TENSORS, "optimizer": moments, "step": 5}, PARAMS.config), PARAMS)


@pytest.mark.parametrize(
    "state_dict, places",
    [
        ({"model": TENSORS, "ema": HALVED, "step": 5}, "2 times, under `model.` and `ema.`"),
        (under("model.") | under("ema_model.module.", HALVED), "2 times, under `model.` and `ema_model.module.`"),
        (TENSORS | under("ema.", HALVED), "2 times, under no prefix and `ema.`"),
    ],
)
def test_a_network_that_is_there_twice(state_dict, places):
    with pytest.raises(ValueError, match=f"{places} .*Pass one of them to `from_state_dict`"):
        from_state_dict(state_dict, PARAMS.config)


def test_the_way_out_of_a_mixture():
    tensors = under("model.") | under("ema.", HALVED)
    chosen = {name: value for name, value in tensors.items() if name.startswith("ema.")}
    assert equal(from_state_dict(chosen, PARAMS.config), jax.tree.map(lambda leaf: np.asarray(leaf) / 2, PARAMS))


@pytest.mark.parametrize(
    "state_dict, message",
    [
        ({"model": {"input_blocks.0.0.weight": np.zeros((2, 2))}}, "OpenAI's guided-diffusion"),
        (under("ema_model.", {"downs.0.0.mlp.1.weight": np.zeros(2)}), "lucidrains'"),
        ({"unet": TENSORS, "vae": {"encoder.conv_in.weight": np.zeros(2)}}, "an autoencoder.*pass only its tensors"),
        (TENSORS | {"a.b": np.zeros(2), "a": {"b": np.zeros(2)}}, "holds `a.b` twice"),
        (TENSORS | {"conv_in.bias": "zeros"}, "`conv_in.bias` is a str"),
        (TENSORS | {"conv_in.bias": None}, "`conv_in.bias` is a NoneType"),
        (TENSORS | {"conv_in.bias": [[1.0], [2.0, 3.0]]}, "`conv_in.bias` cannot become an array"),
        (TENSORS | {"conv_in.bias": np.zeros(8, complex)}, "of complex128"),
    ],
)
def test_what_is_no_network_of_ours(state_dict, message):
    with pytest.raises(ValueError, match=message):
        from_state_dict(state_dict, PARAMS.config)


def test_what_is_no_dict(untyped):
    class Module:
        def state_dict(self):
            raise AssertionError

    with pytest.raises(TypeError, match=r"not Module. Pass `model.state_dict\(\)` of .* `read_torch_pickle`"):
        from_state_dict(Module(), PARAMS.config)
    endless = {}
    endless["x"] = {"y": endless}
    with pytest.raises(ValueError, match="No name belongs to this network"):
        from_state_dict(endless, PARAMS.config)


def test_long_lists_are_capped():
    other = to_state_dict(make_params(layers_per_block=3))
    with pytest.raises(ValueError) as error:
        from_state_dict(under("module.", other), PARAMS.config)
    extra = len(other.keys() - TENSORS.keys())
    lines = str(error.value).splitlines()
    assert len(lines) <= 24 and f"  unexpected  and {extra - 8} more" in lines
    assert not any("module." in line for line in lines)


class Tensor:
    """As much of torch's tensors as is relied on: numpy cannot take one that needs a gradient, or bfloat16."""

    def __init__(self, array, *, grad=True, dtype="bfloat16"):
        self.array, self.grad, self.dtype, self.shape = np.asarray(array), grad, dtype, np.shape(array)

    def detach(self):
        return Tensor(self.array, grad=False, dtype=self.dtype)

    def cpu(self):
        return self

    def is_floating_point(self):
        return True

    def float(self):
        return Tensor(self.array, grad=self.grad, dtype="float32")

    def __array__(self, dtype=None, copy=None):
        if self.grad or self.dtype == "bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16, or requires grad")
        return self.array.astype(dtype or np.float32)


@pytest.mark.parametrize("kind", [Tensor, jnp.asarray, np.ndarray.tolist, lambda value: value.astype(np.float64)])
def test_kinds_of_tensors(kind):
    tensors = {name: kind(value) for name, value in TENSORS.items()}
    assert equal(from_state_dict(tensors, PARAMS.config), PARAMS)


def test_tensors_are_copied():
    tensors = {name: value.copy() for name, value in TENSORS.items()}
    params = from_state_dict(tensors, PARAMS.config)
    for value in tensors.values():
        value *= 0
    assert equal(params, PARAMS)


@pytest.mark.slow
def test_live_tensors_of_torch():
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in TENSORS.items()}
    params = from_state_dict(tensors, PARAMS.config)
    assert equal(params, PARAMS)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.zero_()
    assert equal(params, PARAMS)
    half = {name: torch.tensor(value).bfloat16() for name, value in TENSORS.items()}
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32), PARAMS)
    assert equal(from_state_dict(half, PARAMS.config), rounded)
    meta = {name: tensor.to("meta") for name, tensor in half.items()}
    with pytest.raises(ValueError, match=r"`conv_in.\w+` cannot become an array of numbers"):
        from_state_dict(meta, PARAMS.config)


class TestNoNumbers:
    """diffusers issue 6492: weights with NaN draw black images, and nothing says so."""

    @pytest.mark.parametrize(
        "values, count",
        [
            (np.array([np.nan, *[0] * 7], np.float32), 1),
            (np.array([np.inf, -np.inf, *[0] * 6], np.float16), 2),
            (np.array([-np.inf, *[0] * 7], ml_dtypes.bfloat16), 1),
            (np.full(8, 1e300), 8),  # beyond float32
        ],
    )
    def test_in_a_state_dict(self, values, count):
        message = rf"1 of {len(TENSORS)} tensors hold NaN or infinity: conv_in.bias \({count} of 8\)"
        with pytest.raises(ValueError, match=message):
            from_state_dict(TENSORS | {"conv_in.bias": values}, PARAMS.config)

    def test_numbers_whose_sum_overflows_are_numbers(self):
        params = from_state_dict(TENSORS | {"conv_in.bias": np.full(8, 3e38, np.float32)}, PARAMS.config)
        assert np.all(np.asarray(params.weights["conv_in"]["bias"]) == np.float32(3e38))

    def test_a_tensor_saved_twice(self):
        params = make_params(time_embedding_type="fourier")
        bad = to_state_dict(params) | {"time_proj.weight": np.full(8, np.nan, np.float32)}
        with pytest.raises(ValueError, match=r"time_proj.weight \(8 of 8\)"):
            from_state_dict(bad | {"time_proj.W": bad["time_proj.weight"]}, params.config)

    @pytest.mark.parametrize("format", ["ddpm_jax", "diffusers"])
    def test_saving(self, tmp_path, format):
        bad = jax.tree.map(lambda leaf: leaf * np.nan, PARAMS)
        with pytest.raises(
            ValueError, match=f"{len(TENSORS)} of {len(TENSORS)} tensors .* and {len(TENSORS) - 8} more"
        ):
            save(bad, tmp_path / "x", format=format)
        assert not list(tmp_path.iterdir())

    @pytest.mark.filterwarnings("ignore:divide by zero")
    def test_in_folders(self, tmp_path, monkeypatch):
        """Written before this was refused."""
        bad = jax.tree.map(lambda leaf: np.asarray(leaf) / np.float32(0), PARAMS)
        write_flat(tmp_path / "theirs", bad)
        with monkeypatch.context() as patch:
            patch.setattr("ddpm_jax.checkpoint.source.raise_if_not_finite", lambda weights: None)
            save(bad, tmp_path / "ours")
        for name in ("theirs", "ours"):
            with pytest.raises(ValueError, match="tensors hold NaN or infinity: conv_in"):
                ddpm_jax.load(tmp_path / name)
