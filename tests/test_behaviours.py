"""docs/testing.md says what the table and the tests' marks say, and no row is without a test or a reason."""

import behaviours


def test_every_row_is_shown_or_explained():
    assert behaviours.problems() == []


def test_the_page_is_the_generators():
    assert behaviours.PAGE.read_text() == behaviours.page(), "run: uv run python tests/behaviours.py"
