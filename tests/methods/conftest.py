"""A network small enough to have known answers, and diffusers around it."""

import jax.numpy as jnp
import pytest
from flax import linen as nn

from pdistill.diffusion import CosineSchedule, Gaussian, eps_from_x, v_from_x
from pdistill.networks import Diffuser


class Mlp(nn.Module):
    """v for points z [B, D]: a residual MLP on z and the angle of the noise level."""

    features: int = 64

    @nn.compact
    def __call__(self, z, logsnr, label=None, *, train=False):
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
    def __call__(self, z, logsnr, label=None, *, train=False):
        off = self.param("off", nn.initializers.zeros, (), z.dtype)
        x_hat = Gaussian(self.mean, self.std).denoise(z, logsnr)
        return v_from_x(z, x_hat, logsnr) + off * eps_from_x(z, x_hat, logsnr)


@pytest.fixture
def mlp():
    return Diffuser(Mlp(), "v", CosineSchedule())


@pytest.fixture
def gaussian():
    return Diffuser(GaussianNetwork(), "v", CosineSchedule())
