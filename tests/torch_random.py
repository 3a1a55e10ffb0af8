"""PyTorch's CPU random numbers in numpy, so that diffusers' seeded numbers can be asserted without torch.

(research/diffusers.md, appendix C; the Mersenne twister and Box-Muller as ATen uses them.)
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
