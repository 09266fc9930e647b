"""DQL, EDP, CAC and SORL: acting, networks, a bandit and published settings."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusion_agents import SLOW, agent_of, chain, config_of, counting, each_agent, one_level, state_of, two_steps
from offline_references import Case
from small_agents import B
from small_agents import config_of as told_config
from small_agents import transitions as batch_of
from stub_agents import critics

from flowrl import agents
from flowrl import config as configs
from flowrl.config import as_arrays, check, put
from flowrl.data.samplers import Transitions
from flowrl.errors import UserError
from flowrl.experiment import presets
from flowrl.experiment.settings import Settings
from flowrl.networks import Spec
from flowrl.run_folder import texts
from flowrl.train_state import TrainState

pytestmark = pytest.mark.usefixtures("x64")


# ------------------------------------------------------------------------------------------------------ acting


@pytest.mark.slow
@each_agent
@pytest.mark.parametrize("explore", [False, True])
def test_the_trained_policy_acts_and_the_critics_choose(name: str, explore: bool) -> None:
    count = 5
    told = {"choice.num_samples": count, "choice.temperature": 0.0} | (
        {"policy.level": 1} if name == "shortcut" else {}
    )
    state, agent, config = state_of(name, 0, told), agent_of(name, told), config_of(name, told)
    policy, s = agent.policy(state), batch_of()["observations"]
    case = Case(config, state, batch_of(), jax.random.key(0))
    draw: Any = {"cac": two_steps, "shortcut": one_level}.get(name, chain)
    candidates = [
        draw(case, case.params["actor"], case.batch["observations"], key)
        for key in [jax.random.key(9), *jax.random.split(jax.random.split(jax.random.key(9))[0], count)]
    ]
    kinds = agent.evaluations(policy.config)
    assert list(kinds) == ["eval", "best_of_n"]
    act = functools.partial(agent.act, inputs={"observations": s}, key=jax.random.key(9), explore=explore)
    np.testing.assert_allclose(act(policy.replace(config=kinds["eval"])), candidates[0], atol=1e-7)
    ranking = case.slow if config.choice.critics == "target" else case.params
    if name == "shortcut":
        ranks = [counting(np, ranking["critic"], s, a, np.full((B, 1), 2.0)) for a in candidates[1:]]
    else:
        ranks = [critics(np, ranking["critic"], s, a) for a in candidates[1:]]
    ranks = [q.mean(axis=0) if name == "shortcut" else q.min(axis=0) for q in ranks]
    best = np.stack(candidates[1:])[np.argmax(ranks, axis=0), np.arange(B)]
    np.testing.assert_allclose(act(policy.replace(config=kinds["best_of_n"])), best, atol=1e-7)


@each_agent
def test_defaults_are_the_published_ones(name: str) -> None:
    config = agents.default(name)
    assert (config.batch_size, config.discount, config.critic.heads, config.critic.target_rate) == (256, 0.99, 2, 0.005)
    if name == "shortcut":
        assert (config.learning_rate, config.max_grad_norm, config.actor_target_rate) == (1e-4, 1.0, 0.005)
        assert (config.flow_alpha, config.consistency_alpha, config.q_alpha) == (10, 10, 100)
        assert (config.policy.finest, config.policy.level, config.choice.num_samples) == (3, 0, 1)
        assert (config.hidden_dims, config.critic.layer_norm, config.critic.activation) == ((512,) * 4, True, "gelu")
        return
    assert (config.learning_rate, config.hidden_dims, config.critic.layer_norm) == (3e-4, (256,) * 3, False)
    assert (config.critic.activation, config.critic.aggregate, config.actor_target.rate) == ("mish", "min", 0.005)
    assert (config.choice.num_samples, config.choice.temperature, config.max_q_backup) == (50, 1, False)
    assert config.choice.critics == ("online" if name.startswith("edp") else "target")
    assert config.q_alpha == (2.0 if name == "edp" else 1.0)
    assert agents.load(name).make.explores(config) == config
    if name == "dql":
        assert (config.policy.levels, config.policy.schedule, config.policy.schedule_scale) == (5, "vp", 1.0)
    if name.startswith("edp"):
        assert (config.policy.levels, config.policy.schedule, config.policy.schedule_scale) == (100, "ddpm", 1.0)
        alphas = {"edp_crr": (1.0, 20.0), "edp_iql": (3.0, 100.0)}
        assert (config.advantage_alpha, config.max_weight) == alphas.get(name, (1.0, 20.0))
        assert config.value.expectile == 0.7
    if name == "cac":
        assert (config.policy.steps, config.normalize_targets, config.grid_updates) == (2, False, 50_000)


@pytest.mark.parametrize("name", ["dql", "edp", "cac"])
def test_there_are_two_critics(name: str) -> None:
    with pytest.raises(UserError, match=r"--agent.critic.heads=3 must be 2"):
        check(told_config(name, {"critic.heads": 3}), "agent.")


@pytest.mark.parametrize(("name", "several"), [("idql", 3), ("ifql", 3), ("edp_iql", 3), ("edp_iql", 1)])
def test_what_draws_next_actions_is_refused_where_targets_bootstrap_v(name: str, several: int) -> None:
    told: dict[str, Any] = {"choice.target_samples": several} if several > 1 else {"max_q_backup": True}
    flags = f"--agent.choice.target_samples={several}" if several > 1 else "--agent.max_q_backup=True"
    with pytest.raises(UserError, match=f"^{flags} is for targets that draw next actions; .* leave it out$"):
        check(told_config(name, told), "agent.")
    if "max_q_backup" in told:
        check(told_config("edp_crr", told), "agent.")


def test_edps_kernels_begin_by_the_rule_of_flax() -> None:
    """Of variance 1/fan-in; Glorot's is 2/(fan-in + fan-out)."""
    config = told_config("edp_iql", {"hidden_dims": (800, 800)})
    params = agents.build("edp_iql", config, Spec.of_sizes(3, 2)).init(jax.random.key(0), config).params
    last = [leaf for leaf in jax.tree.leaves(params) if leaf.shape[-2:] in ((800, 1), (800, 2))]
    assert len(last) == 3  # critics, value and policy
    for kernel in last:
        np.testing.assert_allclose(kernel.std(), 800**-0.5, rtol=0.1)


def test_iqls_value_in_edp_is_like_its_critics() -> None:
    config = told_config("edp_iql", {"hidden_dims": (8,), "critic.layer_norm": True, "critic.hidden_dims": (4, 4)})
    agent = agents.build("edp_iql", config, Spec.of_sizes(3, 2))
    params = jax.eval_shape(lambda key: agent.init(key, config).params, jax.random.key(0))
    value, critic = (params[name]["params"]["MLP_0"] for name in ("value", "critic"))
    assert value.keys() == critic.keys() >= {"LayerNorm_0", "LayerNorm_1"}


def test_networks_have_the_sizes_of_the_papers() -> None:
    """A state of 17 and an action of 6: DQL's 16 features of a level go through 32 units to 16 numbers."""
    spec = Spec.of_sizes(17, 6)

    def count(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    hidden = 2 * (256 * 256 + 256)
    embedded = 16 * 32 + 32 + 32 * 16 + 16 + (39 * 256 + 256) + hidden + 256 * 6 + 6
    twins = 2 * ((23 * 256 + 256) + hidden + 257)
    for name in ("dql", "edp", "edp_iql", "cac"):
        config = agents.default(name)
        state = jax.eval_shape(agents.build(name, config, spec).init, jax.random.key(0), config)
        assert (count(state.params["actor"]), count(state.params["critic"])) == (embedded, twins)
        assert set(state.target_params) == {"actor", "critic"}
        assert set(state.params) == {"actor", "critic", *(["value"] if name == "edp_iql" else [])}
    config = agents.default("shortcut")
    state = jax.eval_shape(agents.build("shortcut", config, spec).init, jax.random.key(0), config)
    wide = 3 * (512 * 512 + 512)
    assert count(state.params["actor"]) == (25 * 512 + 512) + wide + 512 * 6 + 6
    assert count(state.params["critic"]) == 2 * ((24 * 512 + 512) + wide + 4 * 1024 + 513)


# ------------------------------------------------------------------------------------------------------ a bandit

BEST = 0.5
FIVE = {"policy.levels": 5, "policy.schedule": "vp"}
BANDIT: dict[str, dict[str, Any]] = {
    "dql": {"q_alpha": 3.0, "learning_rate": 1e-2, "actor_learning_rate": 1e-2, **SLOW},
    "edp": {**FIVE, "q_alpha": 3.0},
    "edp_crr": {**FIVE, "q_alpha": 10.0, "advantage_alpha": 20.0, "max_weight": 100.0},
    "edp_iql": {**FIVE, "q_alpha": 1.0, "advantage_alpha": 20.0},
    "cac": {"q_alpha": 100.0, "actor_learning_rate": 3e-3, **SLOW, "grid_updates": 600},
    "shortcut": {"policy.finest": 2, "q_alpha": 10.0, "learning_rate": 1e-3, "actor_target_rate": 0.05},
}


def rows_of(key: jax.Array, two_modes: jax.Array) -> Any:
    """128 rows of one state: actions uniform, or near ±0.6; rewards 1 − (a − 0.5)²."""
    sign_key, noise_key = jax.random.split(key)
    around = 0.6 * jax.random.rademacher(sign_key, (128, 1), jnp.float32)
    spread = jax.random.uniform(noise_key, (128, 1), jnp.float32, -1.0, 1.0)
    actions, s = jnp.where(two_modes, around + 0.05 * spread, spread), jnp.ones((128, 1), jnp.float32)
    rows = {"observations": s, "next_observations": s, "actions": actions, "masks": jnp.zeros(128, jnp.float32)}
    return Transitions(0.9).complete({**rows, "rewards": 1 - (actions[:, 0] - BEST) ** 2})


@functools.cache
def bandit(name: str) -> Any:
    """A compiled training, `(key, config, whether there are two modes) -> 500 actions`, and the configuration."""
    told = {"hidden_dims": (32, 32), "learning_rate": 3e-3, "choice.num_samples": 1, **BANDIT[name]}
    config = told_config(name, told)
    agent = agents.build(name, config, Spec.of_sizes(1, 1))

    def train(key: jax.Array, config: Any, two_modes: jax.Array) -> jax.Array:
        def step(i: jax.Array, state: TrainState) -> TrainState:
            rows_key, update_key = jax.random.split(jax.random.fold_in(key, i))
            return agent.update(state, rows_of(rows_key, two_modes), update_key)[0]

        policy = agent.policy(jax.lax.fori_loop(0, 600, step, agent.init(key, config)))
        return agent.act(policy, {"observations": jnp.ones((500, 1), jnp.float32)}, key)[:, 0]

    return jax.jit(train), as_arrays(config)


def acted(name: str, two_modes: bool, told: dict[str, float] | None = None) -> np.ndarray:
    with jax.enable_x64(False):
        train, config = bandit(name)
        other = {name: jnp.float32(value) for name, value in (told or {}).items()}
        return np.asarray(train(jax.random.key(1), put(config, other), jnp.asarray(two_modes)))


@pytest.mark.slow
@each_agent
def test_policies_on_a_bandit_take_the_best_action(name: str) -> None:
    """The data's mean is 0 and its spread 0.58, for which the reward is 0.42 on average."""
    actions = acted(name, two_modes=False)
    assert abs(actions.mean() - BEST) < 0.25
    assert (1 - (actions - BEST) ** 2).mean() > 0.78


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dql", "cac", "shortcut"])
def test_cloning_alone_does_not_average_modes(name: str) -> None:
    """Actions near ±0.6: so short a training smears them, but their mean is not what comes out."""
    actions = acted(name, two_modes=True, told={"q_alpha": 0.0})
    assert 0.3 < (actions > 0).mean() < 0.7
    assert actions.std() > 0.3


# ------------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize(
    ("name", "dataset", "run", "own"),
    [
        ("dql", "hopper-medium-v2", {"steps": 2_000_000, "eval.episodes": 10}, {"q_alpha": 1.0, "max_grad_norm": 9.0}),
        (
            "dql", "antmaze-medium-play-v2", {"normalize.reward_scale": 4.0, "normalize.reward_shift": -2.0},
            {"actor_learning_rate": 1e-3, "q_alpha": 2.0, "max_q_backup": True, "max_grad_norm": 2.0},
        ),
        ("dql", "kitchen-complete-v0", {"steps": 250_000, "eval.episodes": 100}, {"q_alpha": 0.005}),
        ("dql", "pen-cloned-v1", {"normalize.rewards": "deviation"}, {"actor_learning_rate": 3e-5, "q_alpha": 0.1}),
        ("edp_iql", "kitchen-mixed-v0", {"normalize.rewards": "range"}, {"max_grad_norm": 10.0}),
        ("edp", "antmaze-large-play-v2", {"normalize.reward_shift": -2.0}, {"max_grad_norm": 10.0, "q_alpha": 2.0}),
        ("edp_iql", "antmaze-large-play-v2", {"normalize.reward_shift": -1.0, "normalize.reward_scale": 1.0}, {}),
        ("edp_crr", "walker2d-medium-v2", {"steps": 2_000_000}, {"max_grad_norm": 1.0}),
        ("edp", "pen-human-v1", {}, {"policy.levels": 1000, "policy.sampler": "dpm", "policy.steps": 15}),
        ("cac", "walker2d-medium-v2", {}, {"policy.steps": 5, "normalize_targets": True, "q_alpha": 1.0}),
        ("cac", "antmaze-large-diverse-v2", {"normalize.reward_scale": 4.0}, {"q_alpha": 3.5, "max_q_backup": True}),
        ("cac", "cube-double-play-singletask-task3", {"eval.episodes": 50}, {"q_alpha": 0.3, "max_grad_norm": 5.0}),
        ("cac", "antmaze-giant-navigate-singletask", {}, {"discount": 0.995, "max_q_backup": True}),
        ("shortcut", "antmaze-giant-navigate-singletask", {}, {"critic.aggregate": "min", "q_alpha": 500.0}),
        ("shortcut", "scene-play-singletask", {"steps": 1_000_000}, {"critic.aggregate": "mean", "q_alpha": 100.0}),
    ],
)  # fmt: skip
def test_published_values(name: str, dataset: str, run: dict[str, Any], own: dict[str, Any]) -> None:
    preset, usual = presets.lookup("paper", name, dataset), agents.default(name)
    assert run.items() <= (configs.values(Settings()) | texts.read(Settings(), preset.run)).items()
    assert own.items() <= (configs.values(usual) | texts.read(usual, preset.agent)).items()


FAULTS = {
    "agents/edp.py": [
        ('"final_init": LECUN', '"final_init": None', "test_edps_kernels_begin_by_the_rule_of_flax"),
        ("16, cosine_features, LECUN)", "16, cosine_features)", "test_edps_kernels_begin_by_the_rule_of_flax"),
        (
            "self.max_q_backup) if self",
            ") if self",
            "test_what_draws_next_actions_is_refused_where_targets_bootstrap_v and edp_iql",
        ),
        (
            "build(config.critic, layers, **ends)",
            "build(Critic(), layers, **ends)",
            "test_iqls_value_in_edp_is_like_its_critics",
        ),
    ],
    "agents/shortcut.py": [
        (
            "steps_of(config.policy.level, a)",
            "steps_of(0, a)",
            "test_the_trained_policy_acts_and_the_critics_choose and shortcut",
        ),
    ],
    "flowrl/choice.py": [
        (
            "if choice.target_samples > 1 else",
            "if choice.num_samples > 99 else",
            "test_what_draws_next_actions_is_refused_where_targets_bootstrap_v",
        ),
        (
            "return with_critic(state, state.params)",
            "return with_critic(state, state.target_params)",
            "test_the_trained_policy_acts_and_the_critics_choose and dql",
        ),
    ],
}
