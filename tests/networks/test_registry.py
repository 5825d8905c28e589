import json

import jax.numpy as jnp
import pytest

from pdistill.networks import DiT, build_network, describe_network


@pytest.mark.parametrize(
    "network",
    [
        DiT(out_channels=1),
        DiT(3, patch=4, features=96, depth=2, heads=3, num_labels=10, dropout=0.1, remat=True),
        DiT(out_channels=1, dtype=jnp.bfloat16),
    ],
    ids=["defaults", "options", "dtype"],
)
def test_description_rebuilds_the_network(network):
    description = describe_network(network)
    plain = json.loads(json.dumps(description))
    assert plain["name"] == "dit"
    rebuilt = build_network(**plain)
    assert rebuilt == network
    assert describe_network(rebuilt) == description
    assert json.loads(json.dumps(describe_network(rebuilt))) == plain


def test_dtype_is_named():
    assert describe_network(DiT(1, dtype=jnp.bfloat16))["arguments"]["dtype"] == "bfloat16"
    assert build_network("dit", {"out_channels": 1, "dtype": "bfloat16"}).dtype == jnp.bfloat16
    assert build_network("dit", {"out_channels": 1, "dtype": None}).dtype is None


def test_unknown_names():
    with pytest.raises(ValueError, match=r"network must be one of dit.*; got 'dti'"):
        build_network("dti", {})
    with pytest.raises(ValueError, match="'dit' has no 'depht'; it has out_channels, patch,"):
        build_network("dit", {"out_channels": 1, "depht": 2})
    for hidden in ("parent", "name"):  # Flax's own fields
        with pytest.raises(ValueError, match=f"'dit' has no '{hidden}'"):
            build_network("dit", {"out_channels": 1, hidden: None})
