"""Sampling on eight (fake) devices equals sampling on one. It runs in its own process: this one has one device."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import small_params

import ddpm_jax
from ddpm_jax import samplers

PROGRAM = """
import sys
sys.path[:0] = {path!r}
import jax
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
import ddpm_jax
from conftest import small_params
from ddpm_jax import samplers, sharding
from ddpm_jax.checkpoint import load

out = {out!r}
params, key, sampler = small_params(), jax.random.key(0), samplers.DDPM(num_steps=5)
assert len(jax.devices()) == 8

eight = ddpm_jax.sample(params, key, 8, sampler=sampler)
assert len(eight.sharding.device_set) == 8, eight.sharding
three = ddpm_jax.sample(params, key, 3, sampler=sampler)  # padded to 8 and cut
assert three.shape[0] == 3
path = ddpm_jax.sample_path(params, key, 3, sampler=sampler, num_frames=2)

import jax.numpy as jnp
x_T = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 8, 1)), "float32")
given = ddpm_jax.sample(params, key, 3, sampler=sampler, x_T=x_T)
later = ddpm_jax.sample(params, key, 3, sampler=sampler, first_index=5)
classes = ddpm_jax.sample(small_params(num_class_embeds=3), key, 3, sampler=sampler, class_labels=np.array([0, 2, 1]))
*_, (_, _, chunked) = ddpm_jax.sample_chunks(params, key, 3, sampler=sampler, chunk=2)
everywhere = sharding.replicate(params)
again = ddpm_jax.sample(everywhere, key, 8, sampler=sampler)
explicit = ddpm_jax.sample(params, key, 8, sampler=sampler, mesh=jax.make_mesh((8,), ("batch",)))

two = sharding.data_mesh(jax.devices()[:2])
on_two = ddpm_jax.sample(params, key, 4, sampler=sampler, mesh=two)
assert len(on_two.sharding.device_set) == 2
placed = jax.device_put(params, jax.devices()[3])  # their owner decides
there = ddpm_jax.sample(placed, key, 2, sampler=sampler)
assert there.sharding.device_set == {{jax.devices()[3]}}

noise = jax.jit(
    lambda key: ddpm_jax.samplers.base.draw_noise(
        ddpm_jax.samplers.base.image_keys(key, np.arange(8)), 1, (8, 8, 1), "float32"
    ),
    out_shardings=jax.sharding.NamedSharding(sharding.data_mesh(), jax.sharding.PartitionSpec("data")),
)(key)
np.savez(out + "/images.npz", eight=eight, three=three, on_two=on_two, there=there, last=path.x_0_hat[-1],
    noise=noise, given=given, later=later, classes=classes, chunked=chunked, again=again, explicit=explicit)

rows = np.arange(16).reshape(8, 2)
everywhere = sharding.replicate(rows)
split = sharding.place(everywhere, sharding.data_mesh(), split=True)  # not left as it is
np.savez(out + "/rows.npz", *[part for start, part in sharding.own_rows(split)],
    starts=[start for start, _ in sharding.own_rows(split)])
assert [part.shape for _, part in sharding.own_rows(everywhere)] == [(8, 2)]

spread = sharding.place(params.weights, sharding.data_mesh(), split=False)
ddpm_jax.save(ddpm_jax.Params(spread, params.config), out + "/saved")
again = load(out + "/saved")
assert not any(leaf.committed for leaf in jax.tree.leaves(again))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    program = PROGRAM.format(path=[str(Path(__file__).parent)], out=str(folder))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_images_equal_those_of_one_device(folder):
    images = np.load(folder / "images.npz")
    one = np.asarray(ddpm_jax.sample(small_params(), jax.random.key(0), 8, sampler=samplers.DDPM(num_steps=5)))
    counts = {"eight": 8, "three": 3, "on_two": 4, "there": 2, "last": 3, "chunked": 3, "again": 8, "explicit": 8}
    for name, count in counts.items():
        # another batch on each device sums convolutions in another order
        np.testing.assert_allclose(images[name], one[:count], atol=2e-5, err_msg=name)


def test_padding_of_what_is_given(folder):
    images, key, sampler = np.load(folder / "images.npz"), jax.random.key(0), samplers.DDPM(num_steps=5)
    x_T = np.random.default_rng(0).standard_normal((3, 8, 8, 1)).astype(np.float32)
    classes = {"class_labels": np.array([0, 2, 1])}
    for name, one in (
        ("given", ddpm_jax.sample(small_params(), key, 3, sampler=sampler, x_T=x_T)),
        ("later", ddpm_jax.sample(small_params(), key, 3, sampler=sampler, first_index=5)),
        ("classes", ddpm_jax.sample(small_params(num_class_embeds=3), key, 3, sampler=sampler, **classes)),
    ):
        np.testing.assert_allclose(images[name], one, atol=2e-5, err_msg=name)  # as above


def test_rows_of_every_device(folder):
    """Whoever writes an array that is split over devices finds every row once, at its place."""
    with np.load(folder / "rows.npz") as rows:
        np.testing.assert_array_equal(rows["starts"], np.arange(8))
        for row in range(8):
            np.testing.assert_array_equal(rows[f"arr_{row}"], [[2 * row, 2 * row + 1]])


def test_noise_is_bit_equal(folder):
    from ddpm_jax.samplers.base import draw_noise, image_keys

    one = draw_noise(image_keys(jax.random.key(0), np.arange(8)), 1, (8, 8, 1), "float32")
    np.testing.assert_array_equal(np.load(folder / "images.npz")["noise"], one)


def test_saved_on_eight_loaded_on_one_and_two(folder):
    params = ddpm_jax.load(folder / "saved")
    jax.tree.map(np.testing.assert_array_equal, params, small_params())
    program = f"""
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]
import jax; jax.config.update("jax_num_cpu_devices", 2)
import numpy as np, ddpm_jax
from conftest import small_params
params = ddpm_jax.load({str(folder / "saved")!r})
jax.tree.map(np.testing.assert_array_equal, params, small_params())
images = ddpm_jax.sample(params, jax.random.key(0), 2, sampler=ddpm_jax.samplers.DDIM(num_steps=2))
assert len(images.sharding.device_set) == 2
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
