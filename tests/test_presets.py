"""Published settings: the tables hold what was published, and every row builds an agent that can take a step."""

import csv
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flowrl import agent as agents
from flowrl import config as configs
from flowrl import loop, presets
from flowrl.agent import Agent, Spec
from flowrl.errors import UserError
from flowrl.settings import plan

AGENTS = ("bc", "fql", "gc_sscp", "gcbc", "gcivl", "hiql", "ofql", "sscp")
PUBLISHED = {
    "bc": 78, "fql": 83, "gc_sscp": 16, "gcbc": 85, "gcivl": 85, "hiql": 85, "ofql": 15, "sscp": 9,
}  # fmt: skip
PRESETS = Path(presets.__file__).parent
SPEC = Spec(5, 3, 5)
DATASETS = sorted(presets.ogbench_datasets())
MAZES = [f"{maze}-{size}" for maze in ("pointmaze", "antmaze") for size in ("medium", "large", "giant", "teleport")]
LONG_JUMPS = ("pointmaze-large-navigate", "antmaze-large-navigate", "antmaze-giant-navigate")


def published(agent: str, dataset: str) -> Any:
    """The agent's Config with the dataset's published values."""
    return agents.load(agent).Config(**presets.lookup("paper", agent, dataset).agent)


def test_the_table_covers_ogbench() -> None:
    assert len(DATASETS) == 85
    for agent in ("gcbc", "gcivl", "hiql"):
        assert all(presets.lookup("paper", agent, dataset) for dataset in DATASETS)


@pytest.mark.parametrize("dataset", [f"{maze}-{kind}" for maze in MAZES for kind in ("navigate", "stitch")])
def test_gc_sscp_has_the_published_jumps(dataset: str) -> None:
    config = published("gc_sscp", dataset)
    expected = (25, 0.99) if "-medium-" in dataset else (100 if dataset in LONG_JUMPS else 50, 0.995)
    assert (config.subgoal_steps, config.discount) == expected
    stitched = dataset.startswith("antmaze-") and dataset.endswith("-stitch")
    goals = (config.actor_p_trajectory, config.actor_p_random)
    assert goals == ((0.5, 0.5) if stitched else (1.0, 0.0))


def test_gc_sscp_defaults_are_the_published_ones() -> None:
    config = published("gc_sscp", "pointmaze-medium-navigate")
    expected = dict(
        low_alpha=5.0, high_alpha=5.0, batch_size=1024, learning_rate=3e-4, hidden_dims=(512, 512, 512), expectile=0.7,
        value_target_rate=0.005, actor_target_rate=0.001, rep_dim=10, value_p_trajectory=0.5, value_p_random=0.3,
    )  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected
    run = presets.lookup("paper", "gc_sscp", "pointmaze-medium-navigate").run
    assert (run["steps"], run["eval_interval"], run["eval_episodes"]) == (500_000, 50_000, 20)


@pytest.mark.parametrize(
    ("agent", "dataset", "values"),
    [
        ("gcivl", "pointmaze-medium-navigate", dict(alpha=10.0, expectile=0.9, discount=0.99)),
        ("gcivl", "pointmaze-giant-stitch", dict(alpha=10.0, discount=0.995)),
        ("hiql", "pointmaze-medium-navigate", dict(low_alpha=3.0, high_alpha=3.0, subgoal_steps=25, expectile=0.7)),
        ("hiql", "humanoidmaze-medium-stitch", dict(discount=0.995, subgoal_steps=100, low_alpha=3.0, high_alpha=3.0)),
        ("hiql", "puzzle-4x6-noisy", dict(low_alpha=3.0, high_alpha=3.0, subgoal_steps=10)),
        ("hiql", "visual-scene-play", dict(batch_size=256, subgoal_steps=10, low_actor_rep_grad=True)),
        ("gcbc", "antmaze-large-navigate", dict(batch_size=1024, learning_rate=3e-4, actor_p_trajectory=1.0)),
    ],
)
def test_published_values(agent: str, dataset: str, values: dict[str, Any]) -> None:
    config = published(agent, dataset)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize("agent", ["gcivl", "hiql"])
@pytest.mark.parametrize("dataset", [name for name in DATASETS if name.endswith("-stitch")])
def test_half_of_the_goals_of_stitch_sets_are_random(agent: str, dataset: str) -> None:
    config = published(agent, dataset)
    assert (config.actor_p_trajectory, config.actor_p_random) == (0.5, 0.5)


def test_steps_of_a_row_are_the_runs() -> None:
    assert presets.lookup("paper", "hiql", "visual-scene-play").run["steps"] == 500_000
    assert presets.lookup("paper", "hiql", "scene-play").run["steps"] == 1_000_000


def batch_of(agent: Agent, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    def shape(field: str) -> tuple[int, ...]:
        if field in ("rewards", "masks", "returns", "horizons"):
            return (size,)
        return (size, SPEC.action_dim if field == "actions" else SPEC.observation_dim)

    return {field: jax.ShapeDtypeStruct(shape(field), jnp.float32) for field in agent.needs.fields}


def statics(config: Any) -> Any:
    """The configuration with its static fields alone: the others are scalars in the state and change no shapes."""
    fields = dataclasses.fields(config)
    return type(config)(
        **{field.name: getattr(config, field.name) for field in fields if not field.metadata["sweepable"]}
    )


@functools.cache
def check_builds(module_name: str, config: Any) -> None:
    agent = agents.load(module_name).make(config, SPEC)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(agent.init, key)
    after, metrics = jax.eval_shape(agent.update, state, batch_of(agent, config.batch_size), key)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("kind", ["paper", "quick", "none"])
def test_every_preset_builds_and_takes_a_step(name: str, kind: str) -> None:
    module, known = agents.load(name), presets.datasets(name)
    assert len(known) == PUBLISHED[name]
    for dataset in sorted(known):
        preset = presets.lookup(kind, name, dataset)
        fields = {field.name for field in dataclasses.fields(module.Config)}
        assert kind == "quick" or set(preset.agent) <= fields
        config = module.Config(**{name: value for name, value in preset.agent.items() if name in fields})
        configs.check(config)
        assert preset.source
        assert set(preset.run) >= {"steps", "log_interval", "eval_interval", "eval_episodes", "checkpoint_interval"}
        assert loop.Schedule(**{name: preset.run[name] for name in loop.Schedule._fields}).next_stop(0) > 0
        check_builds(name, statics(config))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as lines:
        return list(csv.DictReader(lines))


def test_fql_has_every_published_offline_row_and_nothing_else() -> None:
    table = rows_of(PRESETS / "fql.csv")
    rows = [row for row in table if row["agent"] == "fql" and row["setting"] == "offline"]
    assert {row["dataset"] for row in rows} == presets.datasets("fql")
    for row in rows:
        config = published("fql", row["dataset"])
        assert config.alpha == float(row["alpha"])
        assert config.discount == (float(row["discount"]) if row["discount"] else 0.99)
        assert config.q_agg == (row["q_agg"] or "mean")
        assert (config.hidden_dims, config.batch_size, config.learning_rate) == ((512,) * 4, 256, 3e-4)
        run = presets.lookup("paper", "fql", row["dataset"]).run
        assert run["steps"] == (int(row["offline_steps"]) if row["offline_steps"] else 1_000_000)
        assert run["eval_episodes"] == 50
        assert run.get("reward_shift", 0.0) == (-1.0 if re.fullmatch("antmaze-.*-v2", row["dataset"]) else 0.0)


def test_fql_goes_online_with_every_published_row() -> None:
    table = rows_of(PRESETS / "fql.csv")
    rows = [row for row in table if row["agent"] == "fql" and row["setting"] == "offline_to_online"]
    assert len(rows) == 15
    for row in rows:
        preset = presets.lookup("paper", "fql", row["dataset"], online=True)
        config = agents.load("fql").Config(**preset.agent)
        assert config.alpha == float(row["alpha"])
        assert config.discount == (float(row["discount"]) if row["discount"] else 0.99)
        assert config.q_agg == (row["q_agg"] or "mean")
        assert preset.run["steps"] == 1_000_000  # also where half of them are published for learning offline
        assert preset.run.get("reward_shift", 0.0) == (-1.0 if row["dataset"].startswith("antmaze") else 0.0)
    # Where none is published, and for agents without such rows, those for learning offline hold.
    for agent, dataset in (("fql", "cube-single-play-singletask"), ("sscp", "hopper-medium-v2")):
        assert presets.lookup("paper", agent, dataset, online=True) == presets.lookup("paper", agent, dataset)


def test_a_run_that_goes_online_starts_from_the_settings_for_it() -> None:
    given = {"agent": "fql", "env": "humanoidmaze-medium-navigate-singletask"}
    assert plan(given, {}).agent_config.alpha == 30
    online = plan({**given, "online_steps": 1_000_000}, {})
    assert (online.agent_config.alpha, online.settings.steps) == (100, 1_000_000)
    assert plan({**given, "online_steps": 1_000_000}, {"alpha": 5.0}).agent_config.alpha == 5


@pytest.mark.parametrize(
    ("dataset", "alpha2"),
    [
        ("halfcheetah-medium-v2", 0.2), ("halfcheetah-medium-replay-v2", 0.05), ("halfcheetah-medium-expert-v2", 0.1),
        ("hopper-medium-v2", 0.05), ("hopper-medium-replay-v2", 0.1), ("hopper-medium-expert-v2", 0.75),
        ("walker2d-medium-v2", 0.5), ("walker2d-medium-replay-v2", 0.1), ("walker2d-medium-expert-v2", 0.1),
    ],
)  # fmt: skip
def test_sscp_has_the_published_weights(dataset: str, alpha2: float) -> None:
    config, run = published("sscp", dataset), presets.lookup("paper", "sscp", dataset).run
    assert (config.flow_alpha, config.completion_alpha) == (1.0, alpha2)
    assert (config.hidden_dims, config.batch_size, config.learning_rate) == ((512,) * 4, 1024, 3e-4)
    assert (config.critic_target_rate, config.actor_target_rate, config.discount) == (0.005, 0.0005, 0.99)
    assert (run["steps"], run["eval_interval"], run["eval_episodes"]) == (500_000, 50_000, 10)


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        ("halfcheetah-medium-v2", dict(max_grad_norm=9, candidate_temperature=50, max_q_backup=False, q_alpha=0.1)),
        ("halfcheetah-medium-expert-v2", dict(max_grad_norm=7, candidate_temperature=50, q_alpha=0.05)),
        ("hopper-medium-v2", dict(max_grad_norm=9, candidate_temperature=100, q_alpha=0.01)),
        ("hopper-medium-expert-v2", dict(max_grad_norm=5, candidate_temperature=8, q_alpha=0.01)),
        ("walker2d-medium-replay-v2", dict(max_grad_norm=4, candidate_temperature=300, q_alpha=0.01)),
        ("antmaze-medium-play-v2", dict(max_grad_norm=2, candidate_temperature=10, q_alpha=0.005, max_q_backup=True)),
        ("antmaze-large-diverse-v2", dict(max_grad_norm=7, candidate_temperature=10, q_alpha=0.3, max_q_backup=True)),
        ("kitchen-mixed-v0", dict(max_grad_norm=10, candidate_temperature=3, max_q_backup=False)),
    ],
)
def test_ofql_has_the_published_values(dataset: str, values: dict[str, Any]) -> None:
    config, run = published("ofql", dataset), presets.lookup("paper", "ofql", dataset).run
    assert {name: getattr(config, name) for name in values} == values
    assert (config.hidden_dims, config.batch_size, config.flow_ratio, config.candidates) == ((256,) * 3, 256, 0.5, 50)
    maze = dataset.startswith("antmaze")
    assert run["steps"] == (1_000_000 if maze or dataset.startswith("kitchen") else 2_000_000)
    assert (run.get("reward_scale", 1.0), run.get("reward_shift", 0.0)) == ((4, -2) if maze else (1.0, 0.0))


def test_a_task_of_its_own_is_evaluated_on_more_episodes() -> None:
    assert presets.lookup("quick", "fql", "cube-single-play-singletask").run["eval_episodes"] == 50
    assert presets.lookup("quick", "hiql", "cube-single-play").run["eval_episodes"] == 10


@pytest.mark.parametrize("agent", ["fpmd_r", "fpmd_m", "dpmd"])
def test_the_warm_up_of_mirror_descent_comes_on_top_of_its_million(agent: str) -> None:
    run = presets.lookup("paper", agent, "HalfCheetah-v5").run
    assert run["online_steps"] - run["warmup_steps"] == 1_000_000
    assert presets.lookup("quick", agent, "HalfCheetah-v5").run["online_steps"] == 200_000


def test_quick_cal_ql_proposes_fewer_actions() -> None:
    settings = presets.lookup("quick", "cal_ql", "antmaze-large-navigate-singletask").agent
    config = agents.load("cal_ql").Config(**settings)
    assert (config.proposals, config.hidden_dims, config.critic_target_rate) == (4, (256, 256, 256), 0.02)
    check_builds("cal_ql", config)


def test_a_missing_preset_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"gc_sscp has no published settings for scene-play; choose --preset=quick"):
        presets.lookup("paper", "gc_sscp", "scene-play")
    with pytest.raises(UserError, match="choose paper, quick or none"):
        presets.lookup("papers", "gc_sscp", "scene-play")


def test_experts_have_ogbenchs_settings() -> None:
    humanoid, ball = (presets.lookup("paper", "sac", f"online-{body}-v0") for body in ("humanoid-xy", "antball-ends"))
    assert humanoid.agent["critic_hidden_dims"] == (1024, 1024, 1024)
    assert (humanoid.agent["q_agg"], humanoid.run["updates_per_step"]) == ("mean", 0.25)
    assert (ball.run["online_steps"], ball.agent["critic_layer_norm"]) == (12_000_000, True)
    for body in ("ant-xy", "humanoid-xy", "antball-ends"):
        preset = presets.lookup("paper", "sac", f"online-{body}-v0")
        config = agents.load("sac").Config(**preset.agent)
        assert (config.activation, config.learning_rate, config.target_entropy) == ("gelu", 1e-4, -0.5)
        assert preset.run["warmup_steps"] == 10_000
    assert agents.load("sac").Config().activation == "relu"
