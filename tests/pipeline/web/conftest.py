"""What several tests of the viewer look at."""

from collections.abc import Iterator

import pytest

from pipeline.store.reader import Store
from pipeline.web.viewer.nuclei import NucleiMap
from tests.support.chromium import Driver, chromium, without_complaints
from tests.support.stores import random_store

SIZE = (2400, 1800)


@pytest.fixture(scope="module")
def browser() -> Iterator[Driver]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def no_complaints(browser: Driver) -> Iterator[None]:
    with without_complaints(browser):
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return random_store(tmp_path_factory.mktemp("store"), 400, SIZE)


@pytest.fixture
def nuclei(store: Store) -> NucleiMap:
    return NucleiMap(store)
