"""TD3+BC, ReBRAC, IQL, IFQL and IDQL: their networks are the authors'."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from baselines import same
from small_agents import SPEC, A, D, config_of
from ways import Way, each_way

from flowrl import agents
from flowrl.config import check
from flowrl.errors import UserError
from flowrl.networks import Spec, dropout

# ------------------------------------------------------------------------------------------------------ networks


def leaf(tree: Any, *names: str) -> Any:
    return functools.reduce(lambda part, name: part[name], ("params", *names), tree)


def test_networks_are_the_authors() -> None:
    """Of a state of 17 and an action of 6."""

    def sizes(name: str, **told: Any) -> dict[str, int]:
        config = config_of(name, told)
        state = jax.eval_shape(agents.build(name, config, Spec.of_sizes(17, 6)).init, jax.random.key(0), config)
        return {entry: sum(x.size for x in jax.tree.leaves(params)) for entry, params in state.params.items()}

    def mlp(*widths: int) -> int:
        return sum((one + 1) * other for one, other in itertools.pairwise(widths))

    q = 2 * mlp(23, 256, 256, 1)
    assert sizes("td3_bc") == {"actor": mlp(17, 256, 256, 6), "critic": q}
    norms = 2 * 2 * 3 * 256
    assert sizes("rebrac") == {
        "actor": mlp(17, 256, 256, 256, 6),
        "critic": 2 * mlp(23, 256, 256, 256, 1) + norms,
    }
    assert sizes("iql") == {"actor": mlp(17, 256, 256, 6) + 6, "value": mlp(17, 256, 256, 1), "critic": q}
    embedding = 64 + mlp(128, 256, 256)
    blocks = 3 * (2 * 256 + mlp(256, 1024, 256))
    assert sizes("idql") == {
        "actor": embedding + (6 + 17 + 256 + 1) * 256 + blocks + 257 * 6,
        "value": 2 * 17 + mlp(17, 256, 256, 1),
        "critic": q,
    }


@pytest.mark.slow
def test_networks_start_as_the_authors_do() -> None:
    def params(name: str, **told: Any) -> Any:
        config = config_of(name, {"hidden_dims": (64, 64)} | told)
        agent = agents.build(name, config, Spec.of_sizes(25, 6))
        return jax.jit(agent.init)(jax.random.key(0), config).params

    found = params("rebrac")
    for entry, limit, inputs in (("actor", 1e-3, 25), ("critic", 3e-3, 31)):
        mlp = leaf(found[entry], "MLP_0") if entry == "critic" else leaf(found[entry])
        assert np.abs(mlp["SplitDense_0"]["kernel"]).max() == pytest.approx(inputs**-0.5, rel=0.02)
        assert np.abs(mlp["Dense_1"]["kernel"]).max() == pytest.approx(limit, rel=0.1)
        assert 0 < np.abs(mlp["Dense_1"]["bias"]).max() <= limit
        np.testing.assert_allclose(mlp["Dense_0"]["bias"], 0.1)
    found = params("iql")
    kernel = leaf(found["actor"], "MLP_0", "Dense_0", "kernel")
    np.testing.assert_allclose(kernel @ kernel.T, 2 * np.eye(64), atol=1e-4)
    last = leaf(found["actor"], "MLP_0", "Dense_1", "kernel")
    np.testing.assert_allclose(last.T @ last, 2 * np.eye(6), atol=1e-4)
    np.testing.assert_array_equal(leaf(found["actor"], "log_stds"), np.zeros(6))


def policy_of(name: str, **told: Any) -> Callable[..., Any]:
    """A fresh policy, a function of its inputs and of what replaces some of its parameters."""
    actor = agents.load(name).networks(config_of(name, told), SPEC).actor
    params = jax.jit(actor.init)(jax.random.key(0))
    return lambda *inputs, key=None, **other: actor({"actor": {"params": params["params"] | other}}, *inputs, key=key)


def test_deviations_stay_in_their_range_and_means_in_theirs() -> None:
    policy, s = policy_of("iql", hidden_dims=(8,)), 100 * jnp.ones((1, D))
    for log, expected in ((9.0, 2.0), (-9.0, -5.0)):
        means, log_stds = policy(s, log_stds=jnp.full(A, log))
        np.testing.assert_array_equal(log_stds, np.full((1, A), expected))
        assert 0.5 < np.abs(means).max() <= 1
    means, log_stds = policy_of("iql", hidden_dims=(8,), tanh_mean=False, learnt_std=False)(s)
    np.testing.assert_array_equal(log_stds, np.zeros((1, A)))
    assert np.abs(means).max() > 1


@each_way
def test_dropout_by_hand(way: Way) -> None:
    x = jnp.full(4000, 3.0)
    found = way(lambda x, key: dropout(x, 0.25, key))(x, jax.random.key(0))
    assert set(np.asarray(found)) == {0, 4}
    assert abs(found.mean() - 3) < 0.1
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iql", "idql"])
def test_numbers_are_dropped_where_a_key_is_given(name: str) -> None:
    inputs = [jnp.ones((1, D)), *([jnp.ones((1, A)), jnp.ones((1, 1))] if name == "idql" else [])]
    policy = policy_of(name, hidden_dims=(16, 16), dropout=0.5)
    plain, again, one, other = (jax.tree.leaves(policy(*inputs, key=key))[0] for key in (
        None, None, jax.random.key(1), jax.random.key(2)
    ))  # fmt: skip
    assert same(plain, again)
    assert not same(plain, one)
    assert not same(one, other)


def test_blocks_of_several_widths_are_refused() -> None:
    with pytest.raises(UserError, match=r"--agent\.hidden_dims=64,32 has several widths"):
        check(config_of("idql", {"hidden_dims": (64, 32)}), "agent.")


FAULTS = {
    "flowrl/policies.py": [
        (
            "jnp.tanh(means) if self.tanh",
            "means if self.tanh",
            "test_deviations_stay_in_their_range_and_means_in_theirs",
        ),
        (
            "jnp.clip(log_stds, *LOG_STD_RANGE), means.shape",
            "log_stds, means.shape",
            "test_deviations_stay_in_their_range_and_means_in_theirs",
        ),
    ],
    "flowrl/networks.py": [
        ("x / (1 - rate), 0.0", "x, 0.0", "test_dropout_by_hand"),
        ("if self.input_norm:", "if False:", "test_networks_are_the_authors"),
        (
            "uniform_within(shape[-2] ** -0.5)",
            "uniform_within(shape[-1] ** -0.5)",
            "test_networks_start_as_the_authors_do",
        ),
    ],
    "flowrl/encoders.py": [
        (
            "h = dropout(x, self.dropout, ",
            "h = dropout(x, 0.0, ",
            "test_numbers_are_dropped_where_a_key_is_given and idql",
        ),
        ("nn.Dense(4 * width)", "nn.Dense(2 * width)", "test_networks_are_the_authors"),
    ],
}
