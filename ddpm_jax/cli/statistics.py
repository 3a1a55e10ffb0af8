"""`ddpm-jax stats`: reference statistics of a folder of images."""

import shutil
import sys
from pathlib import Path

from tyro.conf import Positional


def stats(
    images: Positional[str],
    out: Positional[Path],
    features: str = "inception-2048/torch-fidelity",
    weights: Path | None = None,
    resolution: int | None = None,
    image_channels: int | None = None,
    background: str | None = None,
    batch_size: int | None = None,
    keep_features: bool = False,
    skip_broken: bool = False,
    force: bool = False,
) -> None:
    """Write the statistics of images to an .npz that pytorch-fid, clean-fid and EDM's tools read too.

    A job that was interrupted goes on when it is started again. Until it ends, features lie beside OUT in a hidden
    folder.

    Args:
        images: a folder of images, a set drawn by `sample`, an .npz or .npy file of uint8 images, or `digits`.
        out: the file to write, OUT.npz.
        features: the extractor, such as pixels, which needs no download.
        weights: the file of the extractor's weights.
        resolution: bring the largest square in the middle of each image to this side, as training does. Give that of
            the model; images stay as they are if left out.
        image_channels: 1 turns all images grey, 3 turns them to colour.
        background: colour below transparent pixels: white, black, #rrggbb, or none.
        batch_size: images of one call of the extractor; as many as fill the devices if left out.
        keep_features: also keep the features of every image, which KID, precision and recall need.
        skip_broken: leave broken image files out instead of refusing the folder.
        force: replace an existing file.
    """
    from ddpm_jax import progress
    from ddpm_jax.evaluation.features import extractor
    from ddpm_jax.evaluation.gathering import gather, open_images
    from ddpm_jax.evaluation.reference import check_new_file, write_statistics

    out = check_new_file(out, overwrite=force)
    made_by = extractor(features, weights=weights)
    source = open_images(images, channels=image_channels, background=background, skip_broken=skip_broken)
    print(source.describe())
    folder = out.with_name(f".{out.name}.features")
    with progress.bar(len(source), unit="images", leave=False) as bar:
        watch = progress.follow(bar)
        found = gather(source, made_by, batch_size=batch_size, resolution=resolution, folder=folder, watch=watch)
    write_statistics(out, found, keep_features=keep_features, overwrite=force)
    shutil.rmtree(folder, ignore_errors=True)
    statistics = found.statistics
    print(f"{out}: mean and covariance of {statistics.count} images, {statistics.dim} features by {found.protocol}.")
    if statistics.count is not None and statistics.count <= statistics.dim:
        print(
            f"Of fewer than {statistics.dim + 1} images the covariance has no full rank: the FID against it is larger "
            "than against more images.",
            file=sys.stderr,
        )
