"""Drawing sets from Python: their images, the progress that is reported, and refusals before anything is written."""

import jax
import numpy as np
import pytest
from conftest import make_params, small_params
from PIL import Image, ImageSequence

import ddpm_jax
from ddpm_jax import samplers
from ddpm_jax.images.draw_set import Recipe, await_file, draw_image, draw_set, missing
from ddpm_jax.images.image_set import ImageSet

DDIM = samplers.DDIM(num_steps=3)


def recipe(**changes):
    return Recipe(**{"params": small_params(), "sampler": DDIM, "seed": 4} | changes)


def of(folder, recipe, count, **kwargs):
    return ImageSet(folder, recipe.settings(), count, shape=recipe.shape, **kwargs)


def test_a_set_is_what_sample_returns_and_can_be_continued(tmp_path):
    """Three images and then two more, in batches of 2. Progress counts images, those that were there included."""
    told, own = [], recipe()
    images = of(tmp_path, own, 3)
    draw_set(images, own, missing(images), batch_size=2, watch=told.append)
    # three steps a batch: 2 images in the first batch, 1 that is wanted of the second
    np.testing.assert_allclose(told, [2 / 3, 4 / 3, 2, 7 / 3, 8 / 3, 3])
    longer = of(tmp_path, own, 5)
    assert missing(longer).tolist() == [False, False, False, True, True]
    told.clear()
    written = (tmp_path / "00002.png").stat().st_mtime_ns
    draw_set(longer, own, missing(longer), batch_size=2, watch=told.append)
    np.testing.assert_allclose([told[0], told[-1]], [3 + 1 / 3, 5])
    assert (tmp_path / "00002.png").stat().st_mtime_ns == written  # of the same batch as number 3, and left alone
    expected = ddpm_jax.sample(own.params, jax.random.key(4), 5, sampler=DDIM)
    pixels = (255 * longer.read(5)).round()
    assert np.abs(pixels - ddpm_jax.to_uint8(expected)).max() <= 1  # rounding of another batch size
    alone = ddpm_jax.to_uint8(draw_image(own, 4)[None]).astype(int)
    assert np.abs(alone - ddpm_jax.to_uint8(expected)[4:]).max() <= 1
    with pytest.raises(FileExistsError, match="holds these 5 images already; choose another `folder`.*`force`"):
        of(tmp_path, own, 5)


@pytest.mark.parametrize("steps, per_frame", [(3, 1), (40, 2)])
def test_a_gif_shows_the_estimates_of_the_first_batch(tmp_path, steps, per_frame):
    """A short run has one frame a step, a longer one 20. Each is the x_0_hat of its step, the last the images."""
    own = recipe(sampler=samplers.DDIM(num_steps=steps))
    images = of(tmp_path, own, 3)
    draw_set(images, own, missing(images), batch_size=2, gif=True)
    with Image.open(tmp_path / "sampling.gif") as gif:
        frames = [np.asarray(frame.convert("L"), np.int32) for frame in ImageSequence.Iterator(gif)]
    chunks = ddpm_jax.sample_chunks(own.params, jax.random.key(4), 2, chunk=per_frame, sampler=own.sampler)
    expected = [ddpm_jax.plotting.grid(x_0_hat)[..., 0].astype(int) for *_, x_0_hat in chunks]
    # a GIF has no more frames than the run has chunks; those that look alike are one
    different = [expected[0]] + [b for a, b in zip(expected, expected[1:], strict=False) if np.abs(b - a).max() > 0]
    assert len(frames) == len(different) > 2
    for frame, grid in zip(frames, different, strict=True):
        assert np.abs(frame - grid).max() <= 1  # grey levels of a palette, and rounding
    assert np.abs(frames[-1] - ddpm_jax.plotting.grid(images.read(2))[..., 0]).max() <= 1


def test_no_gif_of_a_batch_that_was_there(tmp_path):
    own = recipe()
    images = of(tmp_path, own, 2)
    draw_set(images, own, missing(images), batch_size=2)
    longer = of(tmp_path, own, 3)
    draw_set(longer, own, missing(longer), batch_size=2, gif=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"{index:05d}.png" for index in range(3)),
        *("grid.png", "samples.json"),
    ]


def test_what_decides_the_images_is_in_the_settings():
    """Changing a field of a recipe changes its settings."""
    params, classes = small_params(), {"params": small_params(num_class_embeds=3)}
    base, labelled = recipe().settings(), recipe(**classes, class_label=0).settings()
    assert recipe(params=small_params(seed=1)).settings()["weights"] != base["weights"]
    assert recipe(params=small_params(dtype="bfloat16")).settings()["dtype"] == "bfloat16" != base["dtype"]
    assert recipe(sampler=samplers.DDIM(num_steps=4)).settings()["sampler"] == "DDIM(num_steps=4)" != base["sampler"]
    assert recipe(seed=5).settings()["seed"] == 5 != base["seed"]
    assert recipe(**classes, class_label=1).settings()["class_label"] == 1 != labelled["class_label"]
    guided = recipe(**classes, class_label=1, guidance_scale=2.0, null_class=2).settings()
    assert (guided["guidance_scale"], guided["null_class"]) == (2.0, 2) and labelled["guidance_scale"] is None
    assert recipe(params=params).settings() == base


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seed": -1}, "`seed` must be an integer from 0"),
        ({"class_label": 1}, "has no classes"),
        ({"guidance_scale": 2.0}, "`guidance_scale` needs a network with a table of classes"),
        ({"classes": 3}, "needs `class_labels`"),
        ({"classes": 3, "class_label": 3}, "`class_labels` must be integers in 0 .. 2"),
        ({"classes": 3, "class_label": 1, "guidance_scale": 2.0, "null_class": 1}, "guides away from class 1, which"),
        ({"classes": 3, "class_label": 1, "null_class": 1}, "`null_class` acts beside `guidance_scale`"),
        ({"sampler": samplers.DDIM(num_steps=1001)}, "`num_steps` must be an integer from 1 to 1000"),
    ],
)
def test_a_recipe_that_sample_would_refuse(changes, message):
    if classes := changes.pop("classes", None):
        changes["params"] = small_params(num_class_embeds=classes)
    with pytest.raises(ValueError, match=message):
        recipe(**changes)


def test_what_no_file_holds(tmp_path):
    own = recipe(params=make_params(in_channels=2, out_channels=2))
    with pytest.raises(ValueError, match=r"1, 3 or 4 channels, not 2\. Keep such images as arrays"):
        of(tmp_path, own, 1)
    images = of(tmp_path, own, 1, format="npz")
    with pytest.raises(ValueError, match="A GIF shows 1, 3 or 4 channels, not 2: leave `gif` out"):
        draw_set(images, own, missing(images), batch_size=1, gif=True)
    with pytest.raises(ValueError, match="`format` must be one of png, npz, not 'jpg'"):
        of(tmp_path, own, 1, format="jpg")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_processes_do_not_share(tmp_path):
    (tmp_path / "there").touch()
    await_file(tmp_path / "there", seconds=0.0)
    with pytest.raises(FileNotFoundError, match=r"samples.json has not appeared in 0.15 s in process 0.*`folder` must"):
        await_file(tmp_path / "samples.json", seconds=0.15)
