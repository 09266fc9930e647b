"""OFQL inside somebody's own JAX script: own data, own loop, nothing of flowrl but the agent.

python docs/examples/own_loop.py
"""

import jax
import jax.numpy as jnp

from flowrl.agents import ofql
from flowrl.networks import Spec
from flowrl.optim import LateTarget

ROWS, BATCH, UPDATES = 4096, 256, 1500


def make_data(key: jax.Array) -> dict[str, jax.Array]:
    """One-step episodes: actions near two opposite points, of which the state's sign says which is rewarded."""
    state_key, mode_key, noise_key = jax.random.split(key, 3)
    states = jnp.sign(jax.random.normal(state_key, (ROWS, 1)))
    modes = jax.random.rademacher(mode_key, (ROWS, 1), jnp.float32)
    actions = jnp.clip(0.7 * modes + 0.05 * jax.random.normal(noise_key, (ROWS, 2)), -1, 1)
    rewards = (states * modes)[:, 0]
    return dict(observations=states, actions=actions, rewards=rewards, masks=jnp.zeros(ROWS), next_observations=states)


def main() -> jax.Array:
    """Trains, and returns the share of states in which the policy picks the rewarded mode."""
    config = ofql.Config(
        hidden_dims=(64, 64), q_alpha=1.0, learning_rate=1e-3, actor_target=LateTarget(start=0, interval=1)
    )
    agent = ofql.make(config, Spec.of_sizes(observation=1, action=2))
    data = agent.batch(config).complete(make_data(jax.random.key(0)))  # adds discounts = γ · masks, and what is valid

    def step(state: ofql.State, key: jax.Array) -> tuple[ofql.State, jax.Array]:
        rows_key, update_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (BATCH,), 0, ROWS)
        state, metrics = agent.update(state, jax.tree.map(lambda x: x[rows], data), update_key)
        return state, metrics["critic/loss"]

    state = agent.init(jax.random.key(1), config)
    state, losses = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(2), UPDATES)))(state)
    states = data["observations"]
    actions = agent.act(agent.policy(state), {"observations": states}, jax.random.key(3))
    right = (jnp.sign(actions.mean(axis=1)) == states[:, 0]).mean()
    print(f"critic loss {losses[0]:.3f} -> {losses[-1]:.3f}; rewarded mode in {100 * right:.1f} % of the states")
    return right


if __name__ == "__main__":
    main()
