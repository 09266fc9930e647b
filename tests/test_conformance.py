"""Every agent against its authors' own numbers: equal parameters, batch and draws, in float64 (docs/fidelity.md)."""

from pathlib import Path

import pytest
from conformance.__main__ import sources
from conformance.harness import PARTS, measure, names, unexplained

TOLERANCE = 1e-10
"""Relative to the largest entry of an array."""


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", names())
def test_the_numbers_are_the_authors(name: str, part: str) -> None:
    # In the order of the parts, the first that fails names the fault: formula, stop-gradient, step or target, draws.
    differences = measure(name)[part]
    assert differences
    assert {key: value for key, value in differences.items() if not value <= TOLERANCE} == {}


@pytest.mark.parametrize("name", names())
def test_what_is_not_compared_has_a_reason(name: str) -> None:
    assert unexplained(name) == []


def test_the_page_has_all_files_and_where_they_come_from() -> None:
    page = (Path(__file__).parent.parent / "docs" / "fidelity.md").read_text()
    assert sources() in page
    assert [name for name in names() if f"| `{name}` | " not in page] == []
