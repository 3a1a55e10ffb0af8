"""Lossy compression by a diffusion model: the bits that each step sends, and the picture that they show.

    curve = rate_distortion(params, key, images)
    draw_curves(curve, "curve.png", [*codec_curve(images, "jpeg"), *codec_curve(images, "webp")])

`decode_progressively` shows single images as a receiver sees them appear.
"""

from ddpm_jax.compression.image_codecs import CodecPoint, codec_curve
from ddpm_jax.compression.rate_distortion import (
    Average,
    Decoding,
    RateDistortion,
    decode_progressively,
    draw_curves,
    rate_distortion,
)

__all__ = [
    "Average",
    "CodecPoint",
    "Decoding",
    "RateDistortion",
    "codec_curve",
    "decode_progressively",
    "draw_curves",
    "rate_distortion",
]
