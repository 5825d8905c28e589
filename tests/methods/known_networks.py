"""Networks small enough to have known answers, blank."""

import jax.numpy as jnp
from flax import linen as nn

from pdistill.diffusion import CosineSchedule, Gaussian, eps_from_x, v_from_x
from pdistill.networks import NOTHING, Conditioning, Network


class Mlp(nn.Module):
    """v for points z [B, D]: a residual MLP on z and the angle of the noise level."""

    features: int = 64

    @nn.compact
    def __call__(self, z, logsnr, told: Conditioning = NOTHING, *, train=False):
        phi = jnp.arctan(jnp.exp(-logsnr / 2))[:, None]
        waves = jnp.concatenate([jnp.sin(k * phi) for k in (1, 2, 4, 8)], axis=-1)
        h = jnp.concatenate([z, waves, jnp.cos(phi)], axis=-1)
        for _ in range(3):
            h = nn.silu(nn.Dense(self.features)(h))
        return nn.Dense(z.shape[-1])(h)


class GaussianNetwork(nn.Module):
    """The optimal network for x ~ N(mean, std^2), with a parameter that spoils it when not 0."""

    mean: float = 0.3
    std: float = 0.7

    @nn.compact
    def __call__(self, z, logsnr, told: Conditioning = NOTHING, *, train=False):
        off = self.param("off", nn.initializers.zeros, (), z.dtype)
        x_hat = Gaussian(self.mean, self.std).denoise(z, logsnr)
        return v_from_x(z, x_hat, logsnr) + off * eps_from_x(z, x_hat, logsnr)


class ClassNetwork(nn.Module):
    """The optimal network for two classes N(+-1, std^2), N(0, std^2) without a label, with w.

    With `guidance` it is the optimal student of its own guided pair: N(+-(1 + w), std^2). A
    parameter spoils it when it is not 0.
    """

    num_labels: int = 2
    guidance: bool = False
    std: float = 0.4

    @nn.compact
    def __call__(self, z, logsnr, told: Conditioning = NOTHING, *, train=False):
        off = self.param("off", nn.initializers.zeros, (), z.dtype)
        label = jnp.full(z.shape[:1], 2) if told.label is None else told.label
        mean = jnp.array([-1.0, 1.0, 0.0], z.dtype)[label]
        if self.guidance:
            mean = mean * (1 + (0 if told.guidance is None else told.guidance))
        x_hat = Gaussian(mean[:, None], self.std).denoise(z, logsnr)
        return v_from_x(z, x_hat, logsnr) + off


def blank(module, *shape):
    """A network of v on the cosine schedule; `.replace(shape=...)` gives it other points."""
    return Network(None, module=module, head="v", schedule=CosineSchedule(), shape=shape)
