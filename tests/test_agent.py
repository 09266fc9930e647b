"""What puts agents together, looks them up and builds them."""

import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_agents import GOAL_SPEC, SPEC, config_of

from flowrl import agents
from flowrl.agent import Agent, Maker
from flowrl.config import config, put, stacked, static, traced
from flowrl.data.samplers import Horizon, Transitions
from flowrl.errors import UserError
from flowrl.networks import MLP, Network, Spec, named
from flowrl.optim import descend
from flowrl.train_state import Batch, Loss, Metrics, Params, Policy, TrainState

KEY = jax.random.key(0)


@config
class Config:
    hidden_dims: tuple[int, ...] = static((4,), "Layers.")
    rate: float = traced(0.1, "Adam's step size.")
    start: float = traced(0.5, "A multiplier at first.")


class Networks(NamedTuple):
    spec: Spec
    one: Network
    other: Network
    again: Network  # with the parameters of `one`


def update(nets: Networks, state: TrainState[Config], batch: Batch, key: jax.Array) -> tuple[Any, Metrics]:
    def loss(nets: Networks, params: Params, state: TrainState[Config], batch: Batch, key: jax.Array) -> Loss:
        value = nets.again(params, batch["observations"]).mean() + params["weight"]["log"]
        return value, {"loss": value}

    return descend(nets, state, batch, key, (loss,), {"one": state.config.rate, "weight": state.config.rate})


def act(nets: Networks, policy: Policy[Config], inputs: Batch, key: jax.Array, *, explore: bool = False) -> jax.Array:
    return nets.one(policy.params, inputs["observations"]) + explore


def networks(config: Config, spec: Spec) -> Networks:
    s, a, _, _ = spec.inputs()
    module = MLP(config.hidden_dims, 2)
    return Networks(spec, **named(one=(module, s), other=(module, a)), again=Network("one", module, ()))


make_for = Maker(
    networks, update, act, batch=lambda config: Transitions(config.rate), targets=("one",),
    acting=lambda state: {"one": state.params["one"]},
    multipliers=lambda config: {"weight": jnp.log(config.start)},
    extras=lambda config: {"seen": config.rate + 1},
)  # fmt: skip


def make(config: Config) -> Agent[Config]:
    return make_for(config, SPEC)


def test_a_new_state_holds_all_that_the_agent_named() -> None:
    state = make(Config()).init(KEY, Config(rate=0.25))
    assert set(state.params) == set(state.opt_state) == {"one", "other", "weight"}
    assert set(state.target_params) == {"one"}
    np.testing.assert_allclose(state.params["weight"]["log"], np.log(0.5))
    assert state.extras["seen"] == 1.25
    assert (state.config.rate, state.config.rate.dtype, state.config.rate.weak_type) == (0.25, jnp.float32, False)
    assert (int(state.step), state.step.dtype) == (0, jnp.int32)
    kernel, other = (state.params[name]["params"]["SplitDense_0"]["kernel"] for name in ("one", "other"))
    assert (kernel.shape, other.shape) == ((3, 4), (2, 4))
    copy = state.target_params["one"]["params"]["SplitDense_0"]["kernel"]
    np.testing.assert_array_equal(copy, kernel)
    assert copy.unsafe_buffer_pointer() != kernel.unsafe_buffer_pointer()  # a donated state holds no buffer twice
    # Each network has a key of its own, in their order.
    expected = Network("other", MLP((4,), 2), (SPEC.inputs()[1],)).init(jax.random.split(KEY)[1])
    jax.tree.map(np.testing.assert_array_equal, state.params["other"], expected)


@pytest.mark.slow
def test_updates_are_counted_and_policies_carry_what_acts() -> None:
    agent = make(Config())
    state = agent.init(KEY, Config())
    batch = {"observations": jnp.ones((5, 3))}
    after, metrics = agent.update(state, batch, KEY)
    assert int(after.step) == 1
    assert set(metrics) == {"loss"}
    # What is trained has moved, and nothing else.
    assert (after.params["weight"]["log"] != state.params["weight"]["log"]).all()
    jax.tree.map(np.testing.assert_array_equal, after.params["other"], state.params["other"])
    policy = agent.policy(after)
    assert set(policy.params) == {"one"}
    assert policy.config.rate == np.float32(0.1)
    assert policy.normalizer is None
    one, other = (agent.act(policy, batch, KEY, explore=explore) for explore in (False, True))
    np.testing.assert_allclose(other, one + 1, rtol=1e-6)
    assert agent.evaluations(Config()) == {"eval": Config()}
    assert agent.batch(Config(rate=0.7)) == Transitions(0.7)


def test_what_is_chosen_as_one_action_is_taken_apart() -> None:
    def chosen(nets: Any, policy: Any, inputs: Any, key: Any, *, explore: bool) -> jax.Array:
        return jnp.arange(6.0)[None] + explore

    def sized(config: Config, spec: Spec) -> Networks:
        assert spec.action_dim == 6
        return networks(config, spec)

    kind = Transitions(0.9, Horizon(steps=3, chunk=True))
    agent = Maker(sized, update, chosen, batch=lambda config: kind, targets=("one",))(Config(), SPEC)
    for explore in (False, True):
        found = agent.act(None, {}, KEY, explore=explore)
        np.testing.assert_array_equal(found, np.array([[[0, 1], [2, 3], [4, 5]]]) + explore)


def test_a_target_that_is_no_network_is_refused() -> None:
    kind = Transitions(0.9)
    with pytest.raises(ValueError, match="targets name no networks: oen"):
        Maker(networks, update, act, batch=lambda config: kind, targets=("one", "oen"))(Config(), SPEC)


def test_a_configuration_of_other_structure_is_refused() -> None:
    agent = make(Config())
    agent.init(KEY, Config(rate=0.9))
    with pytest.raises(ValueError, match="the networks were built for other static settings"):
        agent.init(KEY, Config(hidden_dims=(5,)))


def test_runs_may_be_mapped_over_their_configurations() -> None:
    runs = stacked(Config(), [{"rate": 0.1}, {"rate": 0.2}])
    states = jax.vmap(make(Config()).init)(jax.random.split(KEY), runs)
    np.testing.assert_allclose(states.config.rate, [0.1, 0.2])
    np.testing.assert_allclose(states.extras["seen"], [1.1, 1.2])


# ------------------------------------------------------------------------------------------- looking up, building


def test_every_agent_has_a_name_and_a_configuration() -> None:
    assert {"fql", "sac", "gc_sscp", "fpmd_r", "fpmd_m", "dpmd"} <= set(agents.names())
    for name in agents.names():
        assert jax.tree.leaves(agents.default(name))


def test_unknown_agents_are_refused() -> None:
    for wanted in (agents.load, agents.default):
        with pytest.raises(UserError, match=r"unknown agent 'fqll'; did you mean fql\?"):
            wanted("fqll")


def test_an_agent_is_built_once_for_one_structure() -> None:
    config = config_of("fql", {"hidden_dims": (8,)})
    agent = agents.build("fql", config, SPEC)
    assert agents.build("fql", put(config, {"alpha": 3, "critic.target_rate": 0.5}), Spec.of_sizes(3, 2)) is agent
    for other in (
        agents.build("fql", put(config, {"critic.heads": 3}), SPEC),
        agents.build("fql", config, Spec.of_sizes(4, 2)),
    ):
        assert other is not agent


@pytest.mark.parametrize(
    "read", [bool, float, int, abs, jnp.asarray, lambda x: x > 1, lambda x: 2 * x, lambda x: x + 1]
)
def test_networks_may_not_be_built_by_what_runs_differ_in(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(config: Config, spec: Spec) -> Any:
        return read(config.rate)

    monkeypatch.setattr(agents, "load", lambda name: types.SimpleNamespace(make=make))
    with pytest.raises(TypeError, match="a traced field was read while networks are built"):
        agents.build(f"reads by {read}", Config(), SPEC)


@pytest.mark.slow
@pytest.mark.parametrize("name", agents.names())
def test_every_agent_starts_from_its_defaults(name: str) -> None:
    agent = agents.build(name, agents.default(name), GOAL_SPEC)
    state = jax.eval_shape(agent.init, KEY, agents.default(name))
    assert set(state.opt_state) == set(state.params)
    assert set(state.target_params) <= set(state.params)
    assert set(agent.policy(state).params) <= set(state.params)
    assert next(iter(agent.evaluations(agents.default(name)))) == "eval"


FAULTS = {
    "flowrl/agent.py": [
        ("if unknown := sorted(", "if False and sorted(", "test_a_target_that_is_no_network_is_refused"),
        (
            "chunks.reshape(*chunks.shape[:-1], length, -1)",
            "chunks.reshape(*chunks.shape[:-1], -1, length).swapaxes(-1, -2)",
            "test_what_is_chosen_as_one_action_is_taken_apart",
        ),
        ("step=state.step + 1", "step=state.step + 2", "test_updates_are_counted_and_policies_carry_what_acts"),
        (
            "if structure != jax.tree.structure(config):",
            "if False:",
            "test_a_configuration_of_other_structure_is_refused",
        ),
    ],
    "agents/sac.py": [
        ("config.target_entropy * nets", "config.target_entropi * nets", "mypy"),
    ],
    "agents/fql.py": [
        ("config.critic.target_rate", "config.critic.target_ratio", "mypy"),
    ],
    "agents/td3.py": [
        ("policy.config.explore_noise", "policy.config.exploration", "mypy"),
    ],
}
