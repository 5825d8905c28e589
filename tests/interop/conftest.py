import pytest
from comparison import save_random


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="session")
def guided(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "guided"
    return save_random(directory, num_labels=3, guidance=(0.0, None))
