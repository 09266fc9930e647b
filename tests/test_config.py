"""Records of settings: names, values, arrays for mapped runs, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowrl.agents import fql
from flowrl.config import as_arrays, bare, check, config, flatten, nested, put, record, stacked, static, traced, values
from flowrl.errors import UserError


@config
class Inner:
    """Within."""

    rate: float = traced(0.5, "A rate.", high=1.0)
    heads: int = static(2, "A size.", high=10)

    def problem(self, prefix: str) -> str:
        return f"{prefix}heads={self.heads} is odd" if self.heads % 2 else ""


@config
class Outer:
    """Around it."""

    inner: Inner = nested(Inner(), "Within.")
    other: Inner = nested(Inner(heads=4))
    steps: int = traced(3, "Whole steps.", low=1)
    alpha: float = traced(10.0, "A weight.")
    shift: float = traced(0.0, "Of either sign.", low=float("-inf"))
    kind: str = static("plain", "What it is.", choices=("plain", "fancy"))
    layers: tuple[int, ...] = static((8, 8), "Layers.")
    on: bool = static(False, "Whether.")


@record
class Run:
    """A run's settings, without arrays."""

    part: Outer = nested(Outer())
    seeds: int | None = static(None, "How many.")
    scale: float = static(1.0, "A factor.", low=0.1, high=2.0, zero="makes nothing")


NAMES = [
    "inner.rate", "inner.heads", "other.rate", "other.heads", "steps", "alpha", "shift", "kind", "layers", "on",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------ names and values


def test_all_that_can_be_set_has_a_dotted_name() -> None:
    assert [entry.name for entry in flatten(Outer())] == NAMES
    assert [entry.name for entry in flatten(Run())] == [*(f"part.{name}" for name in NAMES), "seeds", "scale"]
    assert [entry.name for entry in flatten(Inner(), "agent.")] == ["agent.rate", "agent.heads"]
    assert values(Outer())["other.heads"] == 4
    assert values(Outer(inner=Inner(rate=0.1)))["inner.rate"] == 0.1


def test_an_entry_tells_its_type_and_its_declaration() -> None:
    entries = {entry.name: entry for entry in flatten(Run())}
    assert entries["seeds"].kind is int
    assert entries["part.steps"].kind is int
    assert entries["part.inner.rate"].traced
    assert not entries["part.inner.heads"].traced
    assert entries["part.inner.rate"].field.metadata["help"] == "A rate."
    assert bare(float | None) is float


def test_values_are_put_by_dotted_name() -> None:
    changed = put(Outer(), {"inner.heads": 6, "inner.rate": 0.25, "other.rate": 0.75, "kind": "fancy"})
    assert changed == Outer(inner=Inner(rate=0.25, heads=6), other=Inner(rate=0.75, heads=4), kind="fancy")
    assert put(Run(), {"part.inner.heads": 8}).part.inner.heads == 8
    assert put(Outer(), values(changed)) == changed
    assert Outer().inner == Inner()  # records do not change
    assert put(Outer(), {}) == Outer()


@pytest.mark.parametrize("name", ["alhpa", "inner.heds", "inner", "heads", "inner.heads.more", "iner.heads", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(KeyError, match="no such settings"):
        put(Outer(), {name: 1})


# ------------------------------------------------------------------------------------------------------- arrays


def test_leaves_are_traced_fields_and_structure_is_the_rest() -> None:
    assert jax.tree.leaves(Outer()) == [0.5, 0.5, 3, 10.0, 0.0]
    same = put(Outer(), {"alpha": 3.0, "inner.rate": 0.1})
    assert jax.tree.structure(same) == jax.tree.structure(Outer())
    for other in ({"inner.heads": 6}, {"kind": "fancy"}, {"layers": (8,)}):
        assert jax.tree.structure(put(Outer(), other)) != jax.tree.structure(Outer())


@pytest.mark.parametrize("alpha", [10, 10.0, np.float64(10), jnp.float32(10), np.int64(10)])
def test_arrays_have_the_declared_types(alpha: Any) -> None:
    arrays = as_arrays(put(Outer(), {"alpha": alpha, "steps": np.int64(7)}))
    assert arrays.alpha.dtype == arrays.inner.rate.dtype == jnp.float32
    assert arrays.steps.dtype == jnp.int32
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(arrays))
    assert (arrays.alpha, arrays.steps, arrays.inner.heads) == (10, 7, 2)
    again = as_arrays(arrays)
    assert jax.tree.map(jnp.array_equal, arrays, again) == jax.tree.map(lambda _: True, again)


def test_whole_numbers_and_others_share_a_program() -> None:
    traces = []

    @jax.jit
    def double(settings: Outer) -> jax.Array:
        traces.append(1)
        return 2 * settings.alpha

    assert [double(as_arrays(put(Outer(), {"alpha": alpha}))) for alpha in (1, 2.5, np.float64(3))] == [2, 5, 6]
    assert len(traces) == 1


def test_runs_are_stacked() -> None:
    runs = stacked(put(Outer(), {"alpha": 4.0}), [{"inner.rate": 0.1}, {"steps": 9}, {"inner.rate": 0.3, "alpha": 1}])
    np.testing.assert_allclose(runs.inner.rate, [0.1, 0.5, 0.3])
    np.testing.assert_array_equal(runs.steps, [3, 9, 3])
    np.testing.assert_array_equal(runs.alpha, [4, 4, 1])
    assert (runs.steps.dtype, runs.alpha.dtype, runs.other.rate.shape) == (jnp.int32, jnp.float32, (3,))
    assert (runs.inner.heads, runs.kind) == (2, "plain")
    mapped = jax.vmap(lambda run: run.alpha * run.steps)(runs)
    np.testing.assert_array_equal(mapped, [12, 36, 3])


@pytest.mark.parametrize("name", ["inner.heads", "kind", "alhpa"])
def test_only_traced_fields_are_stacked(name: str) -> None:
    with pytest.raises(KeyError, match=f"not traced fields of test_config: {name}"):
        stacked(Outer(), [{}, {name: 1}])


# ------------------------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"part.inner.heads": 12}, r"--part.inner.heads=12 is too large; the most is 10"),
        ({"part.inner.heads": 0}, r"--part.inner.heads=0 is too small; the least is 1"),
        ({"part.other.heads": 5}, r"--part.other.heads=5 is odd"),
        ({"part.inner.rate": 1.5}, r"--part.inner.rate=1.5 is out of range; give a value in \[0, 1\]"),
        ({"part.inner.rate": -0.1}, r"--part.inner.rate=-0.1 is out of range"),
        ({"part.alpha": float("nan")}, r"--part.alpha=nan is out of range"),
        ({"part.alpha": 1e39}, r"--part.alpha=1e\+39 is out of range; give a value in \[0, 3.40282e\+38\]"),
        ({"part.alpha": 1e-60}, r"--part.alpha=1e-60 is too small to be told from 0"),
        ({"part.shift": float("-inf")}, r"--part.shift=-inf is out of range"),
        ({"part.steps": 0}, r"--part.steps=0 is out of range; give a value in \[1, 2147483647\]"),
        ({"part.steps": 2**31}, r"--part.steps=2147483648 is out of range"),
        ({"part.kind": "fanci"}, r"--part.kind=fanci is unknown; choose plain or fancy; did you mean fancy\?"),
        ({"part.kind": "zzz"}, r"--part.kind=zzz is unknown; choose plain or fancy$"),
        ({"part.layers": (8, 0)}, r"--part.layers=\(8, 0\) is too small; the least is 1"),
        ({"part.layers": (8,) * 101}, r"--part.layers has 101 layers; the most is 100"),
        ({"seeds": 0}, r"--seeds=0 is too small"),
        ({"scale": 0.0}, r"--scale=0 makes nothing; give another number, or leave it out"),
        ({"scale": 3.0}, r"--scale=3.0 is out of range; give a value in \[0.1, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(put(Run(), told))


@pytest.mark.parametrize(
    "told",
    [{}, {"part.inner.rate": 1.0}, {"part.inner.rate": 0}, {"part.shift": -1e30}, {"part.layers": ()}, {"seeds": 4}],
)
def test_what_fits_passes(told: dict[str, Any]) -> None:
    check(put(Run(), told))


def test_flags_begin_with_the_prefix() -> None:
    with pytest.raises(UserError, match=r"^--agent.inner.rate=2 is out of range"):
        check(put(Outer(), {"inner.rate": 2}), "agent.")
    with pytest.raises(UserError, match=r"^--agent.inner.heads=3 is odd"):
        check(put(Outer(), {"inner.heads": 3}), "agent.")


def test_nothing_is_checked_while_a_record_is_made() -> None:
    # Flattening and unflattening make records of tracers, and of whatever else.
    assert jax.tree.map(str, Outer()).alpha == "10.0"
    mapped = jax.vmap(functools.partial(lambda rate: put(fql.Config(), {"critic.target_rate": rate})))(jnp.arange(3.0))
    np.testing.assert_array_equal(mapped.critic.target_rate, [0, 1, 2])


FAULTS = {
    "flowrl/config.py": [
        ("[own.get(name, value) for own in values]", "[value for own in values]", "test_runs_are_stacked"),
        ("jnp.int32 if entry.kind is int else jnp.float32", "jnp.float32", "test_arrays_have_the_declared_types"),
        (
            "jnp.asarray(entry.value, jnp.int32 if entry.kind is int else jnp.float32)",
            "jnp.asarray(entry.value)",
            "test_whole_numbers_and_others_share_a_program",
        ),
        ("put(getattr(record, name), new)", "getattr(record, name)", "test_values_are_put_by_dotted_name"),
        ("if unknown := values.keys() - {", "if unknown := set() & {", "test_unknown_names_are_refused"),
        (
            'if kind != "static"]\n    structure = [name for name, kind in kinds.items() if kind == "static"]',
            "]\n    structure = []",
            "test_leaves_are_traced_fields_and_structure_is_the_rest",
        ),
        ('hasattr(part, "problem") and', "False and", "test_what_does_not_fit_is_refused"),
    ],
}
