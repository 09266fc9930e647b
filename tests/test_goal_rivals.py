"""GCIQL, CRL and QRL on rings and lines with known answers; what is built, read and acts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goal_rivals import NAMES, each_agent, each_quasimetric
from lines import CELLS, GAMMA, cell_pairs, line, trained
from small_agents import GOAL_SPEC, A, D, config_of, networks_of
from small_agents import goal_transitions as batch_of
from test_presets import check_builds, settings_of

from flowrl import agents
from flowrl.agents import crl, qrl
from flowrl.config import check, put, values
from flowrl.data.dataset import Dataset, from_arrays
from flowrl.data.goals import GoalMix
from flowrl.data.samplers import Goals
from flowrl.errors import UserError
from flowrl.experiment import presets
from flowrl.networks import Spec

# ------------------------------------------------------------------------------------------- rings and lines of cells

RING = 4


def ring() -> Dataset:
    """A ring of cells that is walked in one direction."""
    cells = np.arange(4 * RING + 1)
    return from_arrays({
        "observations": np.eye(RING, dtype=np.float32)[cells % RING],
        "actions": np.full((len(cells), 1), 0.8, np.float32),
        "terminals": cells == cells[-1],
    })  # fmt: skip


@pytest.mark.slow
@each_quasimetric
def test_distances_on_a_ring_are_those_of_the_one_way_around_it(kind: str) -> None:
    told = {"hidden_dims": (32,), "batch_size": 64, "learning_rate": 5e-3, "latent_dim": 32, "quasimetric": kind}
    first = {"multiplier": {"log": jnp.float32(1.5)}}  # nearer to where it ends
    agent, state = trained("qrl", told | {"slack": 0.01, "actor_loss": "awr"}, ring(), updates=500, first=first)
    s, g = np.divmod(np.arange(RING**2), RING)
    x = networks_of(agent).phi(state.params, jnp.eye(RING))
    distances = qrl.d(state.config, state.params, x[s], x[g])
    # A mean squared excess of 0.01 lets a step be 1.1 long.
    np.testing.assert_allclose(distances, 1.04 * ((g - s) % RING), rtol=0.15, atol=0.05)


@functools.cache
def trained_on_line(name: str) -> Any:
    told: dict[str, Any] = {"hidden_dims": (32, 32), "learning_rate": 4e-3, "discount": GAMMA, "alpha": 1.0}
    told |= {
        "gciql": {
            "value.expectile": 0.95, "critic.target_rate": 0.05,
            "value_goals.p_trajectory": 0.6, "value_goals.p_random": 0.2,
        },
        "crl": {"latent_dim": 16},
        "qrl": {"latent_dim": 32},
    }[name]  # fmt: skip
    return trained(name, told, line(), updates=300 if name == "qrl" else 450)


@pytest.mark.slow
def test_gciqls_values_on_a_line_are_those_of_the_distance() -> None:
    # Reward −1 until the goal is reached in k steps: −(1 − γ^k)/(1 − γ). The 0.95-expectile lies a little below.
    agent, state = trained_on_line("gciql")
    nets, (s, g), eye = networks_of(agent), cell_pairs(), jnp.eye(CELLS)
    expected = -(1 - GAMMA ** np.abs(s - g)) / (1 - GAMMA)
    toward = jnp.asarray(0.8 * np.sign(g - s))[:, None]
    np.testing.assert_allclose(nets.value(state.params, eye[s], eye[g]), expected, atol=0.25)
    q, away = (nets.critic(state.params, eye[s], eye[g], a) for a in (toward, -toward))
    np.testing.assert_allclose(q, np.broadcast_to(expected, q.shape), atol=0.3)
    assert (q > away).all()


@pytest.mark.slow
def test_crl_learns_how_likely_goals_are_and_ranks_states_by_their_distance() -> None:
    # Of B goals one is a row's own: f = log p(g | s, a) / p(g) − log(B − 1), with p(g | s, a) the share of geometric
    # futures that end in g, those beyond the end in the last cell.
    agent, state = trained_on_line("crl")
    nets, (s, g), eye = networks_of(agent), cell_pairs(), jnp.eye(CELLS)
    ahead = np.zeros((CELLS, CELLS))
    for c in range(CELLS):
        for k in range(1, 100):
            ahead[c, min(c + k, CELLS - 1)] += (1 - GAMMA) * GAMMA ** (k - 1)
    both = np.stack([ahead, ahead[::-1, ::-1]])
    share = both.mean(axis=(0, 1))
    expected = np.log(np.where(g > s, both[0, s, g], both[1, s, g]) / share[g]) - np.log(128 - 1)
    toward = jnp.asarray(0.8 * np.sign(g - s))[:, None]
    logits = crl.f(nets.phi(state.params, eye[s], toward), nets.psi(state.params, eye[g]))
    np.testing.assert_allclose(logits, np.broadcast_to(expected, logits.shape), atol=0.6)
    away = crl.f(nets.phi(state.params, eye[s], -toward), nets.psi(state.params, eye[g]))
    assert (away < logits - 1).all()  # never seen
    for goal in range(CELLS):
        for side in (s > g, s < g):  # a step is worth log γ = −0.22, two are more than the error of what is learnt
            here = (g == goal) & side
            ordered = np.asarray(logits).mean(axis=0)[here][np.argsort(np.abs(s - g)[here])]
            assert (ordered[2:] < ordered[:-2]).all()


@pytest.mark.slow
@each_agent
def test_policies_on_a_line_go_toward_the_goal(name: str) -> None:
    agent, state = trained_on_line(name)
    (s, g), eye = cell_pairs(), jnp.eye(CELLS)
    inputs = {"observations": eye[s], "goals": eye[g]}
    actions = agent.act(agent.policy(state), inputs, jax.random.key(5))
    toward = np.asarray(actions)[:, 0] * np.sign(g - s)
    assert (toward > 0).mean() > 0.97
    np.testing.assert_allclose(toward.mean(), 0.8, atol=0.3)


@pytest.mark.slow
def test_gciqls_policy_follows_q_where_cloning_goes_nowhere() -> None:
    # With goals from anywhere either walk is as likely for each of them, so that the data's mean action is 0.
    goals = {
        f"{kind}_goals.{share}": float(share == "p_random")
        for kind in ("value", "actor")
        for share in ("p_random", "p_trajectory")
    }
    told = {"hidden_dims": (32, 32), "learning_rate": 4e-3, "discount": GAMMA, "critic.target_rate": 0.05, "alpha": 0.3}
    agent, state = trained("gciql", told | goals, line(), updates=450)
    (s, g), eye = cell_pairs(), jnp.eye(CELLS)
    actions = agent.act(agent.policy(state), {"observations": eye[s], "goals": eye[g]}, jax.random.key(5))
    toward = np.asarray(actions)[:, 0] * np.sign(g - s)
    assert (toward > 0).mean() > 0.9


# -------------------------------------------------------------------------------------- what is built, read and acts


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["awr", "ddpgbc"])
@each_agent
def test_an_update_trains_what_the_loss_of_the_policy_needs(name: str, loss: str) -> None:
    told = {"hidden_dims": (8,), "actor_loss": loss, "learnt_std": True}
    told |= {} if name == "gciql" else {"latent_dim": 16}
    config = config_of(name, told)
    agent = agents.build(name, config, GOAL_SPEC)
    state = agent.init(jax.random.key(0), config)
    own = {
        "gciql": {"awr": set(), "ddpgbc": set()},
        "qrl": {"awr": set(), "ddpgbc": {"dynamics"}},
        "crl": {"awr": {"value_phi", "value_psi"}, "ddpgbc": set()},
    }
    always = {"gciql": {"value", "critic"}, "qrl": {"phi", "odds", "multiplier"}, "crl": {"phi", "psi"}}
    expected = {"actor"} | always[name] | own[name][loss]
    assert set(state.params) == expected
    after, metrics = jax.jit(agent.update)(state, batch_of(), jax.random.key(1))
    moved = {
        network
        for network in expected
        if any(not np.array_equal(x, y) for x, y in zip(
            jax.tree.leaves(state.params[network]), jax.tree.leaves(after.params[network]), strict=True
        ))
    }  # fmt: skip
    assert moved == expected
    assert all(np.isfinite(value) for value in metrics.values())
    policy, inputs = agent.policy(after), {"observations": jnp.ones((5, D)), "goals": jnp.zeros((5, D))}
    assert set(policy.params) == {"actor"}
    modes, draws = (agent.act(policy, inputs, jax.random.key(2), explore=explore) for explore in (False, True))
    assert modes.shape == draws.shape == (5, A)
    assert np.abs(draws).max() <= 1
    np.testing.assert_allclose(modes, np.broadcast_to(modes[:1], modes.shape), rtol=1e-5)
    assert np.std(draws, axis=0).min() > 0.1


def test_defaults_are_ogbenchs() -> None:
    shared = {"learning_rate": 3e-4, "batch_size": 1024, "hidden_dims": (512, 512, 512), "discount": 0.99}
    shared |= {"actor_loss": "ddpgbc", "learnt_std": False}
    own = {
        "gciql": {"value.expectile": 0.9, "critic.target_rate": 0.005, "critic.heads": 2, "alpha": 0.3},
        "qrl": {"slack": 0.05, "quasimetric": "iqe", "latent_dim": 512, "alpha": 0.003},
        "crl": {"latent_dim": 512, "alpha": 0.1},
    }
    kinds = {"gciql": (0.5, 0.3), "qrl": (0.0, 1.0), "crl": (1.0, 0.0)}
    for name in NAMES:
        config = agents.default(name)
        assert (shared | own[name]).items() <= values(config).items()
        trajectory, random = kinds[name]
        value = GoalMix(p_trajectory=trajectory, p_random=random, geometric=True)
        assert agents.load(name).make.batch(config) == Goals(GoalMix(), value, 0.99)


def test_qrl_refuses_goals_that_are_no_states_and_groups_that_are_not_whole() -> None:
    with pytest.raises(UserError, match="without -oraclerep"):
        agents.build("qrl", agents.default("qrl"), Spec.of_sizes(5, 2, 3))
    for told, part in (({"latent_dim": 20}, 8), ({"latent_dim": 7, "quasimetric": "mrn"}, 2)):
        with pytest.raises(UserError, match=f"must be a multiple of {part}"):
            check(put(agents.default("qrl"), told), "agent.")


@pytest.mark.parametrize(
    ("agent", "dataset", "expected"),
    [
        ("gciql", "pointmaze-giant-navigate", {"alpha": 0.003, "discount": 0.995, "actor_goals.p_random": 0}),
        ("gciql", "antmaze-large-explore", {"alpha": 0.01, "actor_goals.p_random": 1, "actor_loss": "ddpgbc"}),
        ("gciql", "scene-play", {"alpha": 1, "batch_size": 1024}),
        ("qrl", "humanoidmaze-medium-stitch", {"alpha": 0.001, "discount": 0.995, "actor_goals.p_random": 0.5}),
        ("qrl", "cube-single-noisy", {"alpha": 0.03, "quasimetric": "iqe"}),
        ("crl", "antsoccer-arena-navigate", {"alpha": 0.3, "discount": 0.99}),
        ("crl", "visual-puzzle-3x3-play", {"alpha": 3, "batch_size": 256}),
        ("crl", "powderworld-easy-play", {"alpha": 3, "actor_loss": "awr"}),
    ],
)
def test_published_values(agent: str, dataset: str, expected: dict[str, Any]) -> None:
    assert expected.items() <= settings_of("paper", agent, dataset)[1].items()


@pytest.mark.slow
@each_agent
def test_every_row_builds_and_takes_a_step(name: str) -> None:
    known = presets.datasets(name)
    assert known == presets.datasets("gcbc")
    for kind in ("paper", "quick"):
        made = [put(agents.default(name), settings_of(kind, name, dataset)[1]) for dataset in sorted(known)]
        for config in made:
            check(config, "agent.")
        for structure in {jax.tree.structure(config) for config in made}:
            check_builds(name, structure)


FAULTS = {
    "flowrl/policies.py": [
        (
            'act_gaussian(nets.actor(policy.params, inputs["observations"], inputs["goals"]), key, explore)',
            'act_gaussian(nets.actor(policy.params, inputs["observations"], inputs["goals"]), key, False)',
            "test_an_update_trains_what_the_loss_of_the_policy_needs and crl-awr",
        ),
    ],
    "flowrl/data/samplers.py": [
        (
            "cls(config.actor_goals, config.value_goals, config.discount)",
            "cls(config.value_goals, config.actor_goals, config.discount)",
            "test_defaults_are_ogbenchs",
        ),
    ],
    "agents/gciql.py": [
        (
            "implicit_value_loss, goals=GOALS), ",
            "implicit_critic_loss, goals=GOALS), ",
            "test_an_update_trains_what_the_loss_of_the_policy_needs and gciql-awr",
        ),
    ],
    "agents/crl.py": [
        (
            "(critic_loss, value_loss, actor_loss) if awr",
            "(critic_loss, actor_loss) if awr",
            "test_an_update_trains_what_the_loss_of_the_policy_needs and crl-awr",
        ),
    ],
    "agents/qrl.py": [
        (
            "if spec.goal is not None and",
            "if False and",
            "test_qrl_refuses_goals_that_are_no_states_and_groups_that_are_not_whole",
        ),
    ],
}
