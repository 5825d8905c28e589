"""Rematerialisation: what the backward pass computes again instead of storing it."""

from flax import linen as nn

PRODUCTS = ("dot_general", "conv_general_dilated")


def rematerialised(module: type[nn.Module], remat: bool | str) -> type[nn.Module]:
    """A module that stores its activations (False), or its inputs only (True).

    "products" stores the results of matrix products and convolutions too, and computes again what
    is cheap: normalisation, activation functions, softmax.
    """
    if remat not in (False, True, "products"):
        raise ValueError(f"remat must be False, True or 'products'; got {remat!r}")
    if not remat:
        return module
    return nn.remat(module, policy=None if remat is True else _is_product)


def _is_product(primitive, *_, **__) -> bool:
    return primitive.name in PRODUCTS
