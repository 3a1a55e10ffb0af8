"""`SamplerConfig`: the sampler that a checkpoint asks for."""

import dataclasses
from typing import Any

from ddpm_jax.validation import thaw


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Name the sampler that a checkpoint asks for: the scheduler's class and its items besides the schedule.

    The items are the (name, value) pairs of the file. Values that the file leaves out stay left out.

    Example:
        >>> SamplerConfig("DDPMScheduler", (("variance_type", "fixed_large"),)).to_dict()
        {'variance_type': 'fixed_large'}
    """

    class_name: str = "DDPMScheduler"
    items: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the items as a dict of JSON values."""
        return {name: thaw(value) for name, value in self.items}
