"""OFQL's own: MeanFlow in its loss, its coin, and when its slow policy moves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_agents import (
    A,
    B,
    assert_close,
    assert_same,
    compiled,
    followed,
    gradients,
    with_config,
)
from small_agents import transitions as batch_of
from stub_agents import agent_of, config_of, state_of

from flowrl.config import check
from flowrl.errors import UserError
from flowrl.train_state import TrainState

KEY = 5

pytestmark = pytest.mark.usefixtures("x64")


def run(state: TrainState) -> tuple[TrainState, Any]:
    return compiled(agent_of("ofql"))(state, batch_of(), jax.random.key(KEY))


def differ(one: Any, other: Any) -> bool:
    return all((np.abs(x - y) > 1e-9).any() for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_ofql_slow_policy_moves_at_due_steps_only() -> None:
    state = state_of("ofql")
    assert (int(state.config.actor_target.start), int(state.config.actor_target.interval)) == (1000, 5)
    other = with_config(state, {"actor_target.start": 7, "actor_target.interval": 3})
    cases = [(state, step, step >= 1000 and step % 5 == 0) for step in (0, 5, 995, 999, 1000, 1001, 1004, 1005, 1010)]
    cases += [(other, step, step in (9, 12)) for step in (0, 6, 7, 9, 10, 12)]
    for start, step, due in cases:
        after, _ = run(start.replace(step=jnp.int32(step)))
        expected = followed(start.target_params, after.params, {"actor": 0.3 if due else 0.0})
        assert_close(after.target_params["actor"], expected["actor"], rtol=1e-9)
        assert differ(after.target_params["actor"], start.target_params["actor"]) is due, step
        assert differ(after.target_params["critic"], start.target_params["critic"])


def test_ofql_clips_each_networks_gradient() -> None:
    state = state_of("ofql")
    plain = gradients(run(state)[0])
    norms = {network: float(optax.global_norm(plain[network])) for network in plain}
    bound = 0.5 * min(norms.values())
    # The critics' step changes with their gradient, by Adam's first step not: the actor's gradient is the same.
    clipped = gradients(run(with_config(state, {"max_grad_norm": bound}))[0])
    for network in plain:
        assert_close(clipped[network], jax.tree.map(lambda g, n=network: g * bound / norms[n], plain[network]), 1e-4)
    loose = gradients(run(with_config(state, {"max_grad_norm": 2 * max(norms.values())}))[0])
    assert_same(loose, plain)


def flow_loss_of(state: TrainState, **flow: float) -> float:
    told = {f"flow.{name}": value for name, value in flow.items()}
    return float(run(with_config(state, told))[1]["actor/flow_loss"])


def test_ofql_at_flow_ratio_one_is_flow_matching() -> None:
    state = with_config(state_of("ofql"), {"flow.adaptive_power": 0.0, "flow.flow_ratio": 1.0})
    key = jax.random.split(jax.random.split(jax.random.key(KEY))[1], 3)[0]
    noise_key, time_key = jax.random.split(key)
    noise, actions = jax.random.normal(noise_key, (B, A)), batch_of()["actions"]
    t = jax.nn.sigmoid(jax.random.normal(time_key, (2, B, 1)) - 0.4).max(axis=0)
    inputs = jnp.concatenate([batch_of()["observations"], (1 - t) * actions + t * noise, t, t], axis=-1)
    velocities = 1.5 * jnp.tanh(inputs @ state.params["actor"]["kernel"] + state.params["actor"]["bias"])
    matching = jnp.mean((velocities - (noise - actions)) ** 2)
    np.testing.assert_allclose(flow_loss_of(state), matching, rtol=1e-9)
    assert abs(flow_loss_of(state, flow_ratio=0.0) - matching) > 1e-3


def test_ofql_adaptive_weights_scale_each_row() -> None:
    # With p = 1 and a tiny c every row counts 1; a huge c divides plain errors by c^p.
    state = state_of("ofql")
    np.testing.assert_allclose(flow_loss_of(state, adaptive_power=1.0, adaptive_constant=1e-12), 1, rtol=1e-6)
    plain = flow_loss_of(state, adaptive_power=0.0)
    np.testing.assert_allclose(flow_loss_of(state, adaptive_power=0.5, adaptive_constant=1e12), plain * 1e-6, rtol=1e-6)
    # The weights are constants: with p = 1 the loss is 1 for all parameters, and still has a gradient.
    constant = {"flow.adaptive_power": 1.0, "flow.adaptive_constant": 1e-12, "q_alpha": 0.0}
    grads = gradients(run(with_config(state, constant))[0])
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(grads["actor"]))


def test_ofql_draws_each_head_half_of_the_time() -> None:
    state = with_config(state_of("ofql"), {"learning_rate": 0.0})
    constant = jax.tree.map(jnp.zeros_like, state.params["critic"]) | {"bias": jnp.array([1.0, 10.0])}
    state = state.replace(params={**state.params, "critic": constant})
    keys = jax.random.split(jax.random.key(0), 200)
    mapped = jax.jit(jax.vmap(lambda key: agent_of("ofql").update(state, batch_of(), key)[1]["actor/q_loss"]))
    losses = np.asarray(mapped(keys))
    # The numerator's head over the other: −1/10 or −10/1.
    low = np.isclose(losses, -0.1)
    assert (low | np.isclose(losses, -10)).all()
    assert abs(low.mean() - 0.5) < 0.12  # standard error 0.035


@pytest.mark.parametrize("heads", [1, 3])
def test_ofql_has_two_critics(heads: int) -> None:
    with pytest.raises(UserError, match=f"--agent.critic.heads={heads} must be 2"):
        check(config_of("ofql", {"critic.heads": heads}), "agent.")
    check(config_of("fql", {"critic.heads": heads}), "agent.")


FAULTS = {
    "flowrl/generative.py": [
        (
            "straight(a, jax.random.normal(noise_key, a.shape), times)",
            "straight(jax.random.normal(noise_key, a.shape), a, times)",
            "test_ofql_at_flow_ratio_one_is_flow_matching",
        ),
    ],
    "flowrl/losses.py": [
        ("jax.lax.stop_gradient(errors) +", "errors +", "test_ofql_adaptive_weights_scale_each_row"),
    ],
    "flowrl/optim.py": [
        ("step >= self.start", "step > self.start", "test_ofql_slow_policy_moves_at_due_steps_only"),
        ("step % self.interval == 0", "step % self.interval == 1", "test_ofql_slow_policy_moves_at_due_steps_only"),
    ],
}
