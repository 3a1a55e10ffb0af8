"""PyTorch's CPU random numbers in numpy, so that diffusers' seeded numbers can be asserted without torch.

ATen's CPU generator is the Mersenne twister mt19937. A float32 uniform is the low 24 bits of a draw times 2^-24. From
16 numbers on, `randn` fills the whole buffer with uniforms and turns blocks of 16 by Box and Muller's transform, the
first eight being radii and the last eight angles; for a rest shorter than 16 the last 16 numbers are drawn anew.
`test_parity.py` compares with torch itself.
"""

import numpy as np


class TorchGenerator:
    """`torch.Generator().manual_seed(seed)`."""

    def __init__(self, seed: int):
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed & 0xFFFFFFFF)

    def _uniform(self, count: int) -> np.ndarray:
        raw = self._bits.random_raw(count).astype(np.uint64)
        return ((raw & np.uint64(2**24 - 1)) * np.float64(2**-24)).astype(np.float32)

    def randn(self, *shape: int) -> np.ndarray:
        """`torch.randn(shape)`, for at least 16 numbers."""
        count = int(np.prod(shape))
        assert count >= 16
        values = self._uniform(count)
        whole = count // 16 * 16
        values[:whole] = _box_muller(values[:whole])
        if count % 16:
            values[-16:] = _box_muller(self._uniform(16))
        return values.reshape(shape)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    blocks = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(-2 * np.log(1 - blocks[:, 0]))
    angle = 2 * np.float32(np.pi) * blocks[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
