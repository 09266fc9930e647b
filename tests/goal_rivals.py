"""What tests of GCIQL, CRL and QRL share: two rows of one number, and policies that are linear in them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import config_of, state_with
from stub_agents import network
from ways import array

from flowrl.train_state import Batch, Params

NAMES = ("gciql", "qrl", "crl")
each_agent = pytest.mark.parametrize("name", NAMES)
each_quasimetric = pytest.mark.parametrize("kind", ["iqe", "mrn"])

# Two rows of one number each. Policies are μ = 0.4 (g − s), so (0.8, 1.6) toward the goals 2 and 5; σ = 1.
BATCH: Batch = {
    "observations": array([0], [1]),
    "next_observations": array([2], [1.5]),
    "actions": array([0.5], [-0.5]),
    "value_goals": array([3], [1]),
    "actor_goals": array([2], [5]),
    "rewards": array(-1, 0),
    "discounts": array(0.5, 0),
    "valid": array(1, 1),
}
NLL = 0.5 * np.array([0.3, 2.1]) ** 2 + 0.5 * np.log(2 * np.pi)
"""−log π of the actions."""


def policy(params: Any, s: jax.Array, g: jax.Array) -> Any:
    means = params["slope"] * (g - s)
    return means, jnp.broadcast_to(params["log_std"], means.shape)


ACTOR = network("actor", policy)
ACTOR_PARAMS = {"slope": jnp.float32(0.4), "log_std": jnp.float32(0)}


def loss_and_slopes(module: Any, name: str, nets: Any, told: dict[str, Any]) -> Callable[..., Any]:
    """`(params, slow, batch) ->` a loss of an agent, and its gradients by the parameters."""
    agent = module.__name__.rsplit(".", 1)[-1]

    def one(params: Params, slow: Params, batch: Batch) -> Any:
        state = state_with(config_of(agent, told), params, slow)

        def loss(params: Params) -> Any:
            return vars(module)[name](nets, params, state, batch, jax.random.key(3))[0]

        return jax.value_and_grad(loss)(params)

    return one


def receivers(grads: Params) -> set[str]:
    """The networks whose gradients are not zero."""
    return {name for name in grads if any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(grads[name]))}
