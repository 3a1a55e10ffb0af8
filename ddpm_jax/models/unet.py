"""The network: diffusers' `UNet2DModel` in flax.linen, NHWC."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.config.unet import UNetConfig
from ddpm_jax.models.blocks import make_down_block, make_mid_block, make_up_block
from ddpm_jax.models.layers import Embedding, TimeProjection, TimestepEmbedding, conv, group_norm


class UNet(nn.Module):
    """Predict eps, x_0 or v from noisy images and their timesteps.

    This is the network of Ho et al. (2020, appendix B) and its descendants, with every option of `UNet2DModel`. Call it
    by `ddpm_jax.apply`, which checks and compiles. It equals diffusers to float32 rounding, except that a timestep
    given as a Python float is not cut to an integer (diffusers issue 13654).

    Example:
        >>> params = ddpm_jax.load("digits-16")
        >>> network = UNet(params.config.unet)
        >>> x = jnp.zeros((2, 16, 16, 1))
        >>> jax.jit(network.apply)({"params": params.weights}, x, jnp.array([0, 9])).shape
        (2, 16, 16, 1)
    """

    config: UNetConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        t: jax.Array,
        class_labels: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Run the network.

        Args:
            x: noisy images [b, h, w, in_channels].
            t: timesteps [b] or a scalar, integer or float; the noise level sigma for a "fourier" network.
            class_labels: [b] integers, or embeddings [b, time_embed_dim] for "identity"; None without classes.
            deterministic: False draws dropout masks from the "dropout" rng.

        Returns:
            The raw output [b, h, w, out_channels], float32.
        """
        config = self.config
        t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])
        if config.center_input_sample:
            x = 2 * x - 1

        time_proj = TimeProjection(config, name="time_proj")
        emb = TimestepEmbedding(config, name="time_embedding")(time_proj(t))
        if class_labels is not None:
            emb = emb + self._embed_classes(class_labels, time_proj)

        skip = x
        h = conv(config, config.block_out_channels[0], 3, "conv_in")(x)
        residuals = [h]
        for index in range(len(config.down_block_types)):
            h, skip, new = make_down_block(config, index)(h, skip, emb, deterministic)
            residuals += new

        if config.mid_block_type is not None:
            h = make_mid_block(config)(h, emb, deterministic)

        skip, count = None, config.layers_per_block + 1
        for index in range(len(config.up_block_types)):
            residuals, taken = residuals[:-count], residuals[-count:]
            h, skip = make_up_block(config, index)(h, skip, taken, emb, deterministic)

        groups = config.groups(config.block_out_channels[0])
        h = nn.silu(group_norm(config, groups, h, "conv_norm_out"))
        out = conv(config, config.out_channels, 3, "conv_out")(h).astype(jnp.float32)
        if skip is not None:
            out = out + skip
        if config.time_embedding_type == "fourier":
            out = out / t.astype(jnp.float32)[:, None, None, None]
        return out

    def _embed_classes(self, class_labels: jax.Array, time_proj: nn.Module) -> jax.Array:
        config = self.config
        if config.class_embed_type == "timestep":
            return TimestepEmbedding(config, name="class_embedding")(time_proj(class_labels))
        if config.class_embed_type == "identity":
            return class_labels
        return Embedding(config, name="class_embedding")(class_labels)
