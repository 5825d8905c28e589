"""Rematerialisation: what the backward pass computes again instead of storing it."""

from flax import linen as nn


def rematerialised(module: type[nn.Module], remat: bool | str) -> type[nn.Module]:
    """A module that stores its activations (False), or its inputs only (True).

    "products" stores the results of convolutions and of products with parameters too, and computes
    again what is cheap or large: normalisation, activation functions, and attention, whose logits
    are B T T heads.
    """
    if remat not in (False, True, "products"):
        raise ValueError(f"remat must be False, True or 'products'; got {remat!r}")
    if not remat:
        return module
    return nn.remat(module, policy=None if remat is True else _is_product)


def _is_product(primitive, *_, **params) -> bool:
    if primitive.name == "dot_general":
        _, (batched, _) = params["dimension_numbers"]
        return not batched  # a product with parameters has none
    return primitive.name == "conv_general_dilated"
