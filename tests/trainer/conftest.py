import pytest
from trainer.process_cases import Nursery


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    """Where a test's processes come from."""
    with Nursery(tmp_path_factory.mktemp("processes")) as nursery:
        yield nursery
