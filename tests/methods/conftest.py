"""The networks of known answers, blank."""

import pytest
from known_networks import ClassNetwork, GaussianNetwork, Mlp, blank


@pytest.fixture
def classes():
    return blank(ClassNetwork(), 1)


@pytest.fixture
def mlp():
    return blank(Mlp(), 2)


@pytest.fixture
def gaussian():
    return blank(GaussianNetwork(), 1)
