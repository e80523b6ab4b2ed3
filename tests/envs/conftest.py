"""Go2 and G1 are in every run; H1 and H1-2 go through the same code, and their compilation takes minutes: `-m slow`."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if item.path.name.startswith("test_legged_") and {"h1", "h1_2"} & {p for p in parameters if isinstance(p, str)}:
            item.add_marker(pytest.mark.slow)
