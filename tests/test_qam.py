"""QAM, its variants, FBRAC and DSRL: every loss by hand for linear networks, what moves, a bandit with answers."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_agents import ACTOR, CRITIC, SMALL, assert_first_step, found, of_action, times
from small_agents import SPEC, check_mapped, compiled, config_of, gradients, state_with, transitions
from stub_agents import network
from ways import Way, array, each_way

from flowrl import agents
from flowrl.agent import Agent
from flowrl.agents import dsrl, fbrac, qam
from flowrl.networks import Networks, Spec
from flowrl.train_state import Params, TrainState

NAMES = ("qam", "qam_f", "qam_e", "fbrac", "dsrl")
TOLD = {"flow.steps": 2, "discount": 0.5, "inverse_temperature": 0.5, "alpha": 2.0, "edit_scale": 0.4}
EDIT = -np.arctanh(0.5)
# One number each, s is not read. Slow copies are others, so that none can be mistaken for one another.
PARAMS: dict[str, Params] = {
    "flow": {"w": array(9.0)[0]}, "actor": {"w": array(1.0)[0]}, "one_step": {"w": array(-1.0)[0]},
    "critic": {"k": array(2, 4)}, "latent_critic": {"k": array(5, 6)}, "edit": {"w": array(EDIT)[0]},
    "temperature": {"log": jnp.log(2.0)},
}  # fmt: skip
SLOW = {"flow": {"w": array(0.5)[0]}, "critic": {"k": array(1, 3)}}


def edits(params: Any, s: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    return params["w"] + 0 * a, 0 * a


NETS = qam.Networks(SMALL, network("flow", times), ACTOR, CRITIC, network("one_step", times), network("edit", edits))


LATENT = dsrl.Networks(
    SMALL, network("flow", times), network("actor", lambda params, s: edits(params, s, s)), CRITIC,
    network("latent_critic", of_action),
)  # fmt: skip


def toy_state(name: str) -> TrainState:
    steps: dict[str, Any] = {"flow.steps": 2}
    told = {"fbrac": steps | {"alpha": 2.0, "flow_alpha": 3.0}, "dsrl": steps | {"latent_scale": 0.4}}
    return state_with(config_of(name, told.get(name, TOLD)), PARAMS, SLOW)


# ------------------------------------------------------------------------------------------------------- losses


@each_way
@pytest.mark.parametrize(
    ("name", "next_draws", "loss"),
    [
        # a' is ½·(1 + ½)² clipped to 1: Q̄ = 1, 3, mean 2, deviation 1, so 1½; y = 1 + ½·1½ = 1¾ and −2;
        # Q = 1, 2 and −2, −4: (.75² + .25² + 0² + 2²)/4.
        ("qam", {"z": [[0.5], [0.5]]}, 1.15625),
        # a' = −½: Q̄ = −½, −1½, so −1 − ½·½ = −1¼; y = .375: (.625² + 1.625² + 4)/4
        ("qam_f", {"z": [[0.5], [0.5]]}, 1.7578125),
        # a' = 1 − .4·½ = .8: Q̄ = .8, 2.4, so 1.6 − ½·.8 = 1.2; y = 1.6: (.6² + .4² + 4)/4
        ("qam_e", {"z": [[0.5], [0.5]], "e": [[0.0], [0.0]]}, 1.13),
    ],
)
def test_critic_loss_by_hand(way: Way, name: str, next_draws: dict[str, Any], loss: float) -> None:
    order = [f"normal {role}" for role in next_draws]
    (value, _), _ = found(way, qam.critic_loss, NETS, toy_state(name), order, next_draws)
    np.testing.assert_allclose(value, loss, rtol=1e-5)


@each_way
def test_fbrac_bootstraps_by_its_flow(way: Way) -> None:
    nets, drawn = Networks(SMALL, ACTOR, CRITIC), {"z": [[0.5], [0.5]]}
    (value, _), _ = found(way, fbrac.critic_loss, nets, toy_state("fbrac"), ["normal z"], drawn)
    np.testing.assert_allclose(value, 1.15625, rtol=1e-5)  # as QAM's


@each_way
def test_the_behaviour_is_cloned_where_whole_rows_are_valid(way: Way) -> None:
    # x = ½·1 + ½·½ = .75, velocity 9·.75 against ½ − 1: 7.25²; the other row does not count, but in the mean.
    drawn = {"t": [[0.5], [0.5]], "z": [[1.0], [1.0]]}
    (value, metrics), grads = found(
        way, qam.flow_loss, NETS, toy_state("qam"), ["uniform t", "normal z"], drawn, valid=array(1, 0)
    )
    np.testing.assert_allclose(value, 7.25**2 / 2, rtol=1e-5)
    np.testing.assert_allclose(grads["flow"]["w"], 7.25 * 0.75, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/flow_loss"], value)


@each_way
def test_adjoint_matching_by_hand(way: Way) -> None:
    """h = ½, v = x, v̄ = ½ x by the slow copy, so x₁ = z + √3 ξ and x₂ = 1¼ x₁. First row: z = 1, x₁ = ½, x₂ = ⅝.

    Q̄'s mean slope is 2: g₂ = −½·2 = −1, g₁ = −1·(1 + ½(1 − 1)) = −1, g₀ = −1·(1 + ½(1 − 2)) = −½. With σ = √6, √2
    the gaps are 1/√6 − √6/2 = −2/√6 and ½/√2 − √2 = −1½/√2. The second ends at 5, where clipping has no slope, and
    g = 0: the gaps are 4/√6 and 4/√2. A gap's slope by v's weight is 2 x/σ.
    """
    drawn = {"z": [[1.0], [4.0]], "noise": [[[-0.5 / np.sqrt(3)], [0.0]]]}
    order = ["normal z", "normal noise"]
    (value, metrics), grads = found(way, qam.adjoint_loss, NETS, toy_state("qam"), order, drawn)
    np.testing.assert_allclose(value, (4 / 6 + 1.125 + 16 / 6 + 8) / 2, rtol=1e-5)
    np.testing.assert_allclose(grads["actor"]["w"], (-8 / 6 - 1.5 + 64 / 6 + 32) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/adjoint"], 0.5, rtol=1e-6)
    others = {name: grad for name, grad in grads.items() if name != "actor"}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(others))


@each_way
def test_the_one_step_policy_is_distilled_and_pulled_by_q(way: Way) -> None:
    # a = −¼, the flow's ¼·1½² = .5625; Q = 3·(−¼): 2·.8125² + ¾. By μ's weight: 2·2·(−.8125)·¼ − 3·¼.
    drawn = {"z": [[0.25], [0.25]]}
    (value, _), grads = found(way, qam.one_step_loss, NETS, toy_state("qam_f"), ["normal z"], drawn)
    np.testing.assert_allclose(value, 2 * 0.8125**2 + 0.75, rtol=1e-5)
    np.testing.assert_allclose(grads["one_step"]["w"], -0.8125 - 0.75, rtol=1e-5)
    assert not any(np.any(leaf) for n in ("actor", "critic") for leaf in jax.tree.leaves(grads[n]))


@each_way
def test_edits_maximise_q_and_entropy(way: Way) -> None:
    # Q(.8) = 2.4, log π = −½ log 2π − log ¾; α = 2 and H̄ = −½: 2 log π − 2.4 + 2 (½ − log π), and so −1.4.
    drawn = {"z": [[0.5], [0.5]], "e": [[0.0], [0.0]]}
    (value, metrics), grads = found(way, qam.edit_loss, NETS, toy_state("qam_e"), ["normal z", "normal e"], drawn)
    log_prob = -0.5 * np.log(2 * np.pi) - np.log(0.75)
    np.testing.assert_allclose(value, -1.4, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/entropy"], -log_prob, rtol=1e-5)
    # by the mean before tanh: 2·2·tanh − 3·.4·¾, tanh = −½
    np.testing.assert_allclose(grads["edit"]["w"], -2 - 0.9, rtol=1e-5)
    np.testing.assert_allclose(grads["temperature"]["log"], 2 * (0.5 - log_prob), rtol=1e-5)
    assert not any(np.any(leaf) for n in ("actor", "critic") for leaf in jax.tree.leaves(grads[n]))


@each_way
def test_dsrl_bootstraps_by_latents_that_its_policy_draws(way: Way) -> None:
    # tanh w = .7616 at w = 1; .4 of it through the slow flow of ½ x, twice: times 1¼². Q̄ = a', 3 a': 2 a' − ½ a'.
    (value, _), _ = found(way, dsrl.critic_loss, LATENT, toy_state("dsrl"), ["normal z"], {"z": [[0.0], [0.0]]})
    y = 1 + 0.5 * 1.5 * 0.4 * np.tanh(1) * 1.25**2
    np.testing.assert_allclose(value, ((1 - y) ** 2 + (2 - y) ** 2 + 4) / 4, rtol=1e-5)


@each_way
def test_dsrl_regresses_critics_of_latents_on_those_of_actions(way: Way) -> None:
    # z = ½ leads to ½·1¼² = .78125: 5·½ against 2·.78125 and 6·½ against 4·.78125; 2·½·error/2 by each weight.
    drawn = {"z": [[0.5], [0.5]]}
    (value, _), grads = found(way, dsrl.latent_loss, LATENT, toy_state("dsrl"), ["normal z"], drawn)
    np.testing.assert_allclose(value, ((2.5 - 1.5625) ** 2 + (3 - 3.125) ** 2) / 2, rtol=1e-5)
    np.testing.assert_allclose(grads["latent_critic"]["k"], [0.5 * 0.9375, -0.5 * 0.125], rtol=1e-4)
    assert not any(np.any(leaf) for n in ("flow", "critic") for leaf in jax.tree.leaves(grads[n]))


@each_way
def test_dsrl_clones_where_whole_rows_are_valid(way: Way) -> None:
    drawn = {"t": [[0.5], [0.5]], "z": [[1.0], [1.0]]}
    (value, _), _ = found(
        way, dsrl.flow_loss, LATENT, toy_state("dsrl"), ["uniform t", "normal z"], drawn, valid=array(1, 0)
    )
    np.testing.assert_allclose(value, 7.25**2 / 2, rtol=1e-5)  # as QAM's


@each_way
def test_dsrl_chooses_latents_of_high_value(way: Way) -> None:
    # log π = −½ log 2π − log(1 − tanh² 1), α = 2, H̄ = −½: 2 log π − 5½·.4 tanh 1 + 2 (½ − log π)
    (value, _), grads = found(way, dsrl.actor_loss, LATENT, toy_state("dsrl"), ["normal z"], {"z": [[0.0], [0.0]]})
    np.testing.assert_allclose(value, 1 - 5.5 * 0.4 * np.tanh(1), rtol=1e-5)
    # log π rises by 2 tanh 1
    np.testing.assert_allclose(grads["actor"]["w"], 4 * np.tanh(1) - 2.2 * (1 - np.tanh(1) ** 2), rtol=1e-5)
    assert not np.any(grads["latent_critic"]["k"])


@each_way
def test_fbrac_pulls_its_flow_through_all_steps(way: Way) -> None:
    # Cloning as above with v = x: (.75 + ½)²/2, times 3. Q = 3·¼·1½² over 2; by the weight −3·¼·1½/2.
    nets, order = Networks(SMALL, ACTOR, CRITIC), ["uniform t", "normal z", "normal start"]
    drawn = {"t": [[0.5], [0.5]], "z": [[1.0], [1.0]], "start": [[0.25], [0.25]]}
    (value, metrics), grads = found(way, fbrac.actor_loss, nets, toy_state("fbrac"), order, drawn, valid=array(1, 0))
    np.testing.assert_allclose(value, 3 * 1.25**2 / 2 - 1.6875 / 2, rtol=1e-5)
    np.testing.assert_allclose(grads["actor"]["w"], 3 * 1.25 * 0.75 - 0.5625, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/q_mean"], 1.6875, rtol=1e-5)
    assert not np.any(grads["critic"]["k"])


# ------------------------------------------------------------------------------------------------------- updates


TINY = {"hidden_dims": (8,), "critic.heads": 3, "flow.steps": 3, "horizon.steps": 1, "horizon.chunk": False}


def agent_of(name: str, told: Mapping[str, Any] | None = None) -> tuple[Agent, Any]:
    config = config_of(name, {**TINY, **(told or {})})
    return agents.build(name, config, SPEC), config


@functools.cache
def fresh(name: str, seed: int = 0) -> TrainState:
    agent, config = agent_of(name)
    return agent.init(jax.random.key(seed), config)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_moves_and_how_far(name: str) -> None:
    agent, _ = agent_of(name)
    state = fresh(name)
    after, metrics = compiled(agent)(state, transitions(), jax.random.key(1))
    own = {"qam_f": {"one_step"}, "qam_e": {"edit", "temperature"}, "dsrl": {"latent_critic", "temperature"}}.get(
        name, set()
    )
    assert set(state.params) == {"actor", "critic", *own, *(() if name == "fbrac" else ("flow",))}
    assert set(state.target_params) == ({"critic"} if name == "fbrac" else {"critic", "flow"})
    assert_first_step(state, after, metrics)
    assert name in ("fbrac", "dsrl") or optax.global_norm(gradients(after)) < 1.01  # clipped together


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qam_f", "qam_e", "fbrac", "dsrl"])
def test_mapped_runs_equal_single_ones(name: str) -> None:
    states = [fresh(name, seed) for seed in range(2)]
    check_mapped(agent_of(name)[0], states, transitions(), rtol=1e-7, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "players"),
    [
        ("qam", {"actor"}),
        ("qam_f", {"one_step"}),
        ("qam_e", {"actor", "edit"}),
        ("fbrac", {"actor"}),
        ("dsrl", {"actor", "flow"}),
    ],
)
def test_a_policy_holds_what_acts(name: str, players: set[str]) -> None:
    agent, config = agent_of(name)
    assert set(agent.policy(fresh(name)).params) == players
    assert agent.explores(config) == config
    several, told = agent_of(name, {"choice.num_samples": 4})
    state = jax.eval_shape(several.init, jax.random.key(0), told)
    assert set(jax.eval_shape(several.policy, state).params) == players | {"critic"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told", "mean", "std"),
    [
        ("qam", {}, 0.23, 0.25),
        # μ − flow = 1/(2α) of α (μ − flow)² − μ
        ("qam_f", {"alpha": 2.5}, 0.4, 0.23),
        ("qam_e", {"edit_scale": 0.4}, 0.35, 0.3),
        ("fbrac", {"alpha": 0.03}, 0.5, 0.2),
        ("dsrl", {"latent_scale": 3.0}, 0.37, 0.29),
    ],
)
def test_one_state_with_a_known_policy(name: str, told: dict[str, Any], mean: float, std: float) -> None:
    """Actions of mean 0 and deviation s earn themselves, and nothing follows: tilted by exp(5 a) their mean is 5 s².

    That is of the flow, whose deviation is ¼ in eight steps, for 0.3 of the data. The others maximise Q besides.
    """
    told |= {"inverse_temperature": 5.0} if name.startswith("qam") else {}
    told = {
        **told,
        "hidden_dims": (32,),
        "critic.heads": 2,
        "flow.steps": 8,
        "horizon.steps": 1,
        "horizon.chunk": False,
    }
    config = config_of(name, {**told, "learning_rate": 5e-3, "critic.target_rate": 0.05})
    agent, s = agents.build(name, config, Spec.of_sizes(1, 1)), jnp.zeros((64, 1))

    def run(key: jax.Array) -> jax.Array:
        def body(i: jax.Array, state: TrainState) -> TrainState:
            a_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            a = jnp.clip(0.3 * jax.random.normal(a_key, (64, 1)), -1, 1)
            rows = {"observations": s, "actions": a, "rewards": a[:, 0], "next_observations": s, "masks": jnp.zeros(64)}
            return agent.update(state, agent.batch(config).complete(rows), update_key)[0]

        state = jax.lax.fori_loop(0, 400, body, agent.init(key, config))
        return agent.act(agent.policy(state), {"observations": jnp.zeros((500, 1))}, key)

    actions = jax.jit(run)(jax.random.key(0))
    np.testing.assert_allclose([actions.mean(), actions.std()], [mean, std], atol=0.1)


FAULTS = {
    "agents/qam.py": [
        (
            'if config.acts == "one_step":',
            "if False:",
            "test_critic_loss_by_hand and plain and qam_f",
        ),
        (
            'jnp.mean(batch["valid"] * errors), {',
            "jnp.mean(errors), {",
            "test_the_behaviour_is_cloned_where_whole_rows_are_valid and plain",
        ),
        ("slopes = -config", "slopes = config", "test_adjoint_matching_by_hand and plain"),
        (
            "lambda a: nets.critic(state.target_params, s, jnp.clip(a, -1.0, 1.0))",
            "lambda a: nets.critic(state.target_params, s, a)",
            "test_adjoint_matching_by_hand and plain",
        ),
        (
            "base, z = partial(nets.flow, state.target_params, s)",
            "base, z = partial(nets.flow, state.params, s)",
            "test_adjoint_matching_by_hand and plain",
        ),
        (
            "partial(nets.actor, state.params, s), base, z, noise)",
            "partial(nets.actor, params, s), base, z, noise + 1)",
            "test_adjoint_matching_by_hand and plain",
        ),
        (
            "config.alpha * distill - q",
            "config.alpha * distill + q",
            "test_the_one_step_policy_is_distilled_and_pulled_by_q and plain",
        ),
        (
            "(a - state.config.flow.actions(partial(nets.actor, state.params, s), z))",
            "(a - state.config.flow.actions(partial(nets.actor, params, s), z))",
            "test_the_one_step_policy_is_distilled_and_pulled_by_q and plain",
        ),
        ("log_probs.mean() - q +", "log_probs.mean() + q +", "test_edits_maximise_q_and_entropy and plain"),
        (
            "loss = multiplier(state.params) * log_probs",
            "loss = multiplier(params) * log_probs",
            "test_edits_maximise_q_and_entropy and plain",
        ),
        ("jointly=True", "jointly=False", "test_what_moves_and_how_far and qam_f"),
        ("polyak(moved, state.params", "polyak(moved, moved.params", "test_what_moves_and_how_far and qam_f"),
        ("PLAYERS[state.config.acts])", 'PLAYERS["flow"])', "test_a_policy_holds_what_acts and qam_e"),
    ],
    "agents/fbrac.py": [
        (
            'batch["valid"][:, None] if',
            'jnp.ones_like(batch["actions"]) if',
            "test_fbrac_pulls_its_flow_through_all_steps and plain",
        ),
        ("loss - q / config.alpha", "loss + q / config.alpha", "test_fbrac_pulls_its_flow_through_all_steps and plain"),
        (
            "sample(nets, config, params, s, z_key)",
            "sample(nets, config, state.params, s, z_key)",
            "test_fbrac_pulls_its_flow_through_all_steps and plain",
        ),
        ("polyak(moved, state.params", "polyak(moved, moved.params", "test_what_moves_and_how_far and fbrac"),
    ],
    "agents/dsrl.py": [
        (
            '"flow": state.target_params["flow"]}',
            '"flow": state.params["flow"]}',
            "test_dsrl_bootstraps_by_latents_that_its_policy_draws and plain",
        ),
        (
            "config.latent_scale * z)\n\n",
            "z)\n\n",
            "test_dsrl_bootstraps_by_latents_that_its_policy_draws and plain",
        ),
        (
            "targets = nets.critic(state.params, s,",
            "targets = nets.critic(state.target_params, s,",
            "test_dsrl_regresses_critics_of_latents_on_those_of_actions and plain",
        ),
        (
            'return jnp.mean(batch["valid"] * errors)',
            "return jnp.mean(errors)",
            "test_dsrl_clones_where_whole_rows_are_valid and plain",
        ),
        ("log_probs.mean() - q\n", "log_probs.mean() + q\n", "test_dsrl_chooses_latents_of_high_value and plain"),
        (
            "nets.latent_critic(state.params, s, config",
            "nets.latent_critic(params, s, config",
            "test_dsrl_chooses_latents_of_high_value and plain",
        ),
    ],
    "flowrl/losses.py": [
        (
            "stop_gradient(-log_probs.mean() - target)",
            "stop_gradient(-log_probs.mean() + target)",
            "test_edits_maximise_q_and_entropy and plain",
        ),
    ],
}
