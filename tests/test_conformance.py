"""Every agent against its authors' own numbers: equal parameters, batch and draws, in float64 (docs/fidelity.md)."""

from pathlib import Path

import pytest
from conformance.__main__ import sources
from conformance.harness import PARTS, measure, names, unexplained

TOLERANCE = 1e-10
"""Relative to the largest entry of an array."""


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_page_has_all_files_and_where_they_come_from() -> None:
    page = (Path(__file__).parent.parent / "docs" / "fidelity.md").read_text()
    assert sources() in page
    assert [name for name in names() if f"| `{name}` | " not in page] == []


FAULTS = {
    "agents/gc_sscp.py": [
        (
            "state.params if state.config.hops == 2 else state.target_params",
            "state.target_params",
            "test_the_numbers_are_the_authors and gc_sscp and actions and not embed",
        ),
        (
            "toward = state if config.lagging_targets else moved",
            "toward = moved",
            "test_the_numbers_are_the_authors and gc_sscp and (after or end) and not embed",
        ),
        ("n, float)", "n, jnp.float32)", "test_the_numbers_are_the_authors and gc_sscp and losses and not embed"),
    ],
    "agents/gcivl.py": [
        (
            "toward = state if config.lagging_targets else moved",
            "toward = moved",
            "test_the_numbers_are_the_authors and gcivl and (after or end)",
        ),
    ],
    "agents/hiql.py": [
        (
            "toward = state if config.lagging_targets else moved",
            "toward = moved",
            "test_the_numbers_are_the_authors and hiql and (after or end) and not rep_grad",
        ),
    ],
    "agents/sscp.py": [
        (
            "toward = state if config.lagging_targets else moved",
            "toward = moved",
            "test_the_numbers_are_the_authors and sscp__mean_q and (after or end)",
        ),
    ],
    "agents/fql.py": [
        (
            "toward = state if config.lagging_targets else moved",
            "toward = moved",
            "test_the_numbers_are_the_authors and fql__min_q and (after or end)",
        ),
        (
            "if config.normalize_q else values.mean()",
            "if config.normalize_q else values.min(axis=0).mean()",
            "test_the_numbers_are_the_authors and fql__min_q and losses",
        ),
    ],
    "agents/fbrac.py": [
        (
            'if config.cloned == "chunks" else batch["actions_valid"]',
            "",
            "test_the_numbers_are_the_authors and qc-losses",
        ),
        ("polyak(moved, state.params", "polyak(moved, moved.params", "test_the_numbers_are_the_authors and qc-after"),
    ],
    "agents/sac.py": [
        (
            "toward = state if config.lagging_targets else moved",
            "toward = moved",
            "test_the_numbers_are_the_authors and sac__mean_q and (after or end)",
        ),
        (
            "ACTIVATIONS[config.activation])",
            'ACTIVATIONS["relu"])',
            "test_the_numbers_are_the_authors and sac__mean_q and losses",
        ),
    ],
    "agents/gcbc.py": [
        ("-1.0, 1.0)", "-9.0, 9.0)", "test_the_numbers_are_the_authors and gcbc and actions"),
    ],
    "flowrl/losses.py": [
        (
            "jnp.abs(q.mean(axis=0)).mean()",
            "jnp.abs(q).mean()",
            "test_the_numbers_are_the_authors and ((fql__normalized or sscp__mean_q) and losses)",
        ),
    ],
    "agents/fpmd.py": [
        ('2, "Adam steps', '1, "Adam steps', "test_the_numbers_are_the_authors and fpmd_m-after"),
        (
            "times, 16, scaled_sinusoidal_features",
            "times, 16, lambda x, size: 4 * scaled_sinusoidal_features(x, size)",
            "test_the_numbers_are_the_authors and fpmd_m-losses",
        ),
        (
            "nets.critic(state.target_params, batch",
            "nets.critic(state.params, batch",
            "test_the_numbers_are_the_authors and fpmd_r-after",
        ),
        (
            "polyak(state, state.params, critic=slow, actor=slow), metrics",
            "polyak(state, state.params, critic=slow), metrics",
            "test_the_numbers_are_the_authors and fpmd_r-after",
        ),
    ],
    "agents/cal_ql.py": [
        (
            "moved, metrics = descend(nets, state, batch, own, losses, rates)\n",
            (
                'moved, _ = descend(nets, state, batch, own[:1], losses[:1], {"critic": rates["critic"]})\n'
                "    moved, metrics = descend(nets, moved, batch, own[1:], losses[1:], {name: rates[name] "
                'for name in rates if name != "critic"})\n'
            ),
            "test_the_numbers_are_the_authors and cal_ql-after",
        ),
    ],
}
