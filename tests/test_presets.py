"""Published settings: the tables hold what was published, and every row builds an agent that can take a step."""

import functools
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flowrl import agents
from flowrl import config as configs
from flowrl.data.dataset import from_arrays
from flowrl.errors import UserError
from flowrl.experiment import presets
from flowrl.experiment.settings import Settings, plan
from flowrl.networks import Spec
from flowrl.reports.published import canonical
from flowrl.run_folder import texts
from flowrl.training.step import train_step

AGENTS = ("bc", "fql", "gc_sscp", "gcbc", "gcivl", "hiql", "ofql", "sscp")
PUBLISHED = {
    "bc": 78, "fql": 83, "gc_sscp": 16, "gcbc": 85, "gcivl": 85, "hiql": 85, "ofql": 15, "sscp": 9,
}  # fmt: skip
SPEC = Spec.of_sizes(5, 3, 5)
DATASETS = sorted(presets.datasets("gcbc"))
MAZES = [f"{maze}-{size}" for maze in ("pointmaze", "antmaze") for size in ("medium", "large", "giant", "teleport")]
LONG_JUMPS = ("pointmaze-large-navigate", "antmaze-large-navigate", "antmaze-giant-navigate")


def settings_of(kind: str, agent: str, dataset: str, *, online: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns all settings of a run, and of its agent, by dotted name."""
    preset = presets.lookup(kind, agent, dataset, online=online)
    usual = agents.default(agent)
    run = configs.values(Settings()) | texts.read(Settings(), preset.run)
    return run, configs.values(usual) | texts.read(usual, preset.agent)


def published(agent: str, dataset: str) -> dict[str, Any]:
    """The agent's settings with the dataset's published values."""
    return settings_of("paper", agent, dataset)[1]


def published_run(agent: str, dataset: str) -> dict[str, Any]:
    """The run's."""
    return settings_of("paper", agent, dataset)[0]


def table(agent: str, setting: str) -> list[dict[str, str]]:
    return [row for row in presets.table("paper", agent) if row["setting"] == setting]


def all_rows(name: str) -> list[tuple[str, dict[str, str]]]:
    """All rows of a preset with the names of their agents."""
    files = (Path(presets.__file__).parent / name).glob("*.csv")
    return [(path.stem, row) for path in files for row in presets.table(name, path.stem)]


def test_the_table_covers_ogbench() -> None:
    assert len(DATASETS) == 85
    for agent in ("gcbc", "gcivl", "hiql"):
        assert all(presets.lookup("paper", agent, dataset) for dataset in DATASETS)


@pytest.mark.parametrize("dataset", [f"{maze}-{kind}" for maze in MAZES for kind in ("navigate", "stitch")])
def test_gc_sscp_has_the_published_jumps(dataset: str) -> None:
    config = published("gc_sscp", dataset)
    expected = (25, 0.99) if "-medium-" in dataset else (100 if dataset in LONG_JUMPS else 50, 0.995)
    assert (config["subgoal_steps"], config["discount"]) == expected
    stitched = dataset.startswith("antmaze-") and dataset.endswith("-stitch")
    goals = (config["actor_goals.p_trajectory"], config["actor_goals.p_random"])
    assert goals == ((0.5, 0.5) if stitched else (1.0, 0.0))


def test_gc_sscp_defaults_are_the_published_ones() -> None:
    config = published("gc_sscp", "pointmaze-medium-navigate")
    expected = {
        "low_alpha": 5.0, "high_alpha": 5.0, "batch_size": 1024, "learning_rate": 3e-4, "hidden_dims": (512, 512, 512),
        "value.expectile": 0.7, "value.target_rate": 0.005, "actor_target_rate": 0.001, "rep_dim": 10,
        "value_goals.p_trajectory": 0.5, "value_goals.p_random": 0.3,
    }  # fmt: skip
    assert expected.items() <= config.items()
    run = published_run("gc_sscp", "pointmaze-medium-navigate")
    assert (run["steps"], run["eval.interval"], run["eval.episodes"]) == (500_000, 50_000, 20)


@pytest.mark.parametrize(
    ("agent", "dataset", "values"),
    [
        ("gcivl", "pointmaze-medium-navigate", {"alpha": 10.0, "value.expectile": 0.9, "discount": 0.99}),
        ("gcivl", "pointmaze-giant-stitch", {"alpha": 10.0, "discount": 0.995}),
        (
            "hiql",
            "pointmaze-medium-navigate",
            {"low_alpha": 3.0, "high_alpha": 3.0, "subgoal_steps": 25, "value.expectile": 0.7},
        ),
        (
            "hiql",
            "humanoidmaze-medium-stitch",
            {"discount": 0.995, "subgoal_steps": 100, "low_alpha": 3.0, "high_alpha": 3.0},
        ),
        ("hiql", "puzzle-4x6-noisy", {"low_alpha": 3.0, "high_alpha": 3.0, "subgoal_steps": 10}),
        ("hiql", "visual-scene-play", {"batch_size": 256, "subgoal_steps": 10, "low_actor_rep_grad": True}),
        (
            "gcbc",
            "antmaze-large-navigate",
            {"batch_size": 1024, "learning_rate": 3e-4, "actor_goals.p_trajectory": 1.0},
        ),
    ],
)
def test_published_values(agent: str, dataset: str, values: dict[str, Any]) -> None:
    assert values.items() <= published(agent, dataset).items()


@pytest.mark.parametrize("agent", ["gcivl", "hiql"])
@pytest.mark.parametrize("dataset", [name for name in DATASETS if name.endswith("-stitch")])
def test_half_of_the_goals_of_stitch_sets_are_random(agent: str, dataset: str) -> None:
    config = published(agent, dataset)
    assert (config["actor_goals.p_trajectory"], config["actor_goals.p_random"]) == (0.5, 0.5)


def test_steps_of_a_row_are_the_runs() -> None:
    assert published_run("hiql", "visual-scene-play")["steps"] == 500_000
    assert published_run("hiql", "scene-play")["steps"] == 1_000_000


@pytest.mark.slow
def test_every_row_sets_flags_that_are_there() -> None:
    for name in ("paper", "quick"):
        for agent, row in all_rows(name):
            flags = {flag: text for flag, text in row.items() if text and flag not in presets._KEYS}
            run = {flag: text for flag, text in flags.items() if not flag.startswith("agent.")}
            configs.check(configs.put(Settings(), texts.read(Settings(), run)))
            if agent in agents.names():
                usual = agents.default(agent)
                of_agent = {flag.removeprefix("agent."): text for flag, text in flags.items() if flag not in run}
                configs.check(configs.put(usual, texts.read(usual, of_agent)), "agent.")


def test_no_two_rows_say_the_same() -> None:
    for name in ("paper", "quick"):
        keys = [(agent, row["dataset"], row["setting"]) for agent, row in all_rows(name)]
        assert len(set(keys)) == len(keys)
        assert all(row["source"] for _, row in all_rows(name))


@functools.cache
def check_builds(name: str, structure: Any) -> None:
    """Checks that an agent's update keeps the shapes of its state; its traced settings change none."""
    config = jax.tree.unflatten(structure, [0.5] * structure.num_leaves)
    agent, key = agents.build(name, config, SPEC), jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(agent.init, key, config)
    rows = {"observations": (9, 5), "actions": (9, 3), "rewards": (9,), "masks": (9,), "returns": (9,)}
    arrays = {field: jnp.zeros(shape) for field, shape in rows.items()} | {"terminals": jnp.arange(9) == 8}
    step = functools.partial(train_step, agent, config.batch_size)
    after, metrics = jax.eval_shape(step, state, key, from_arrays(arrays))  # type: ignore[arg-type]
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (after, state)]
    assert shapes[0] == shapes[1]
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize("kind", ["paper", "quick", "none"])
def test_every_preset_builds_and_takes_a_step(name: str, kind: str) -> None:
    known = presets.datasets(name)
    assert len(known) == PUBLISHED[name]
    for dataset in sorted(known):
        run, own = settings_of(kind, name, dataset)
        config = configs.put(agents.default(name), own)
        configs.check(config, "agent.")
        configs.check(configs.put(Settings(), run))
        assert run["steps"] > 0
        check_builds(name, jax.tree.structure(config))


def test_fql_has_every_published_offline_row_and_nothing_else() -> None:
    rows = table("fql", "offline")
    assert {row["dataset"] for row in rows} == presets.datasets("fql")
    for row in rows:
        config, run = published("fql", row["dataset"]), published_run("fql", row["dataset"])
        assert config["alpha"] == float(row["agent.alpha"])
        assert config["discount"] == (float(row["agent.discount"]) if row["agent.discount"] else 0.99)
        assert config["critic.aggregate"] == (row["agent.critic.aggregate"] or "mean")
        assert (config["hidden_dims"], config["batch_size"], config["learning_rate"]) == ((512,) * 4, 256, 3e-4)
        assert run["eval.episodes"] == 50
        maze = re.fullmatch("antmaze-.*-v2", row["dataset"])
        assert run["normalize.reward_shift"] == (-1.0 if maze else 0.0)
    assert [published("fql", f"{name}-singletask")["alpha"] for name in ("antsoccer-arena-navigate", "scene-play")] == [
        10, 300,
    ]  # fmt: skip
    assert published_run("fql", "visual-cube-single-play-singletask-task1")["steps"] == 500_000
    assert published_run("fql", "scene-play-singletask")["steps"] == 1_000_000


def test_fql_goes_online_with_every_published_row() -> None:
    rows = table("fql", "offline_to_online")
    assert len({canonical(row["dataset"]) for row in rows}) == 15
    assert len(rows) == 20  # OGBench's five tasks under both of their names
    for row in rows:
        run, config = settings_of("paper", "fql", row["dataset"], online=True)
        assert config["alpha"] == float(row["agent.alpha"])
        assert config["discount"] == (float(row["agent.discount"]) if row["agent.discount"] else 0.99)
        assert config["critic.aggregate"] == (row["agent.critic.aggregate"] or "mean")
        assert run["steps"] == 1_000_000  # also where half of them are published for learning offline
        assert run["normalize.reward_shift"] == (-1.0 if row["dataset"].startswith("antmaze") else 0.0)
    # Where none is published, and for agents without such rows, those for learning offline hold.
    for agent, dataset in (("fql", "cube-single-play-singletask"), ("sscp", "hopper-medium-v2")):
        assert presets.lookup("paper", agent, dataset, online=True) == presets.lookup("paper", agent, dataset)


@pytest.mark.parametrize("agent", ["fql", "iql", "ifql", "rebrac"])
def test_a_task_goes_online_alike_under_both_of_its_names(agent: str) -> None:
    for row in table(agent, "offline_to_online"):
        names = row["dataset"], canonical(row["dataset"])
        one, other = (presets.lookup("paper", agent, name, online=True) for name in names)
        assert one == other


def test_a_run_that_goes_online_starts_from_the_settings_for_it() -> None:
    given = {"agent": "fql", "env": "humanoidmaze-medium-navigate-singletask"}
    assert plan(given, {}).config.alpha == 30
    online = plan({**given, "online.steps": 1_000_000}, {})
    assert (online.config.alpha, online.settings.steps) == (100, 1_000_000)
    assert plan({**given, "online.steps": 1_000_000}, {"alpha": 5.0}).config.alpha == 5


@pytest.mark.parametrize(
    ("dataset", "alpha2"),
    [
        ("halfcheetah-medium-v2", 0.2), ("halfcheetah-medium-replay-v2", 0.05), ("halfcheetah-medium-expert-v2", 0.1),
        ("hopper-medium-v2", 0.05), ("hopper-medium-replay-v2", 0.1), ("hopper-medium-expert-v2", 0.75),
        ("walker2d-medium-v2", 0.5), ("walker2d-medium-replay-v2", 0.1), ("walker2d-medium-expert-v2", 0.1),
    ],
)  # fmt: skip
def test_sscp_has_the_published_weights(dataset: str, alpha2: float) -> None:
    config, run = published("sscp", dataset), published_run("sscp", dataset)
    expected = {"flow_alpha": 1.0, "completion_alpha": alpha2, "hidden_dims": (512,) * 4, "batch_size": 1024}
    expected |= {"learning_rate": 3e-4, "critic.target_rate": 0.005, "actor_target_rate": 0.0005, "discount": 0.99}
    assert expected.items() <= config.items()
    assert (run["steps"], run["eval.interval"], run["eval.episodes"]) == (500_000, 50_000, 10)


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        (
            "halfcheetah-medium-v2",
            {"max_grad_norm": 9, "choice.temperature": 50, "max_q_backup": False, "q_alpha": 0.1},
        ),
        ("halfcheetah-medium-expert-v2", {"max_grad_norm": 7, "choice.temperature": 50, "q_alpha": 0.05}),
        ("hopper-medium-v2", {"max_grad_norm": 9, "choice.temperature": 100, "q_alpha": 0.01}),
        ("hopper-medium-expert-v2", {"max_grad_norm": 5, "choice.temperature": 8, "q_alpha": 0.01}),
        ("walker2d-medium-replay-v2", {"max_grad_norm": 4, "choice.temperature": 300, "q_alpha": 0.01}),
        (
            "antmaze-medium-play-v2",
            {"max_grad_norm": 2, "choice.temperature": 10, "q_alpha": 0.005, "max_q_backup": True},
        ),
        (
            "antmaze-large-diverse-v2",
            {"max_grad_norm": 7, "choice.temperature": 10, "q_alpha": 0.3, "max_q_backup": True},
        ),
        ("kitchen-mixed-v0", {"max_grad_norm": 10, "choice.temperature": 3, "max_q_backup": False}),
    ],
)
def test_ofql_has_the_published_values(dataset: str, values: dict[str, Any]) -> None:
    config, run = published("ofql", dataset), published_run("ofql", dataset)
    usual = {"hidden_dims": (256,) * 3, "batch_size": 256, "flow.flow_ratio": 0.5, "choice.num_samples": 50}
    assert (values | usual).items() <= config.items()
    maze = dataset.startswith("antmaze")
    assert run["steps"] == (1_000_000 if maze or dataset.startswith("kitchen") else 2_000_000)
    scaled = (run["normalize.reward_scale"], run["normalize.reward_shift"])
    assert scaled == ((4, -2) if maze else (1.0, 0.0))


def test_a_task_of_its_own_is_evaluated_on_more_episodes() -> None:
    assert settings_of("quick", "fql", "cube-single-play-singletask")[0]["eval.episodes"] == 50
    assert settings_of("quick", "hiql", "cube-single-play")[0]["eval.episodes"] == 10


def test_an_agent_without_a_row_of_its_own_has_quick_settings() -> None:
    preset = presets.lookup("quick", "iql", "Pendulum-v1")
    assert (preset.run["steps"], preset.agent["hidden_dims"]) == ("20000", "256,256,256")


@pytest.mark.parametrize(("agent", "slow"), [("bc", None), ("iql", "0.02"), ("qam", "0.02")])
def test_quick_settings_of_any_agent_are_those_that_it_has(agent: str, slow: str | None) -> None:
    preset = presets.lookup("quick", agent, "Pendulum-v1")
    assert preset.agent.get("critic.target_rate") == slow
    assert "actor_learning_rate" not in preset.agent


def test_target_critics_of_agents_that_learn_from_data_follow_fast_in_quick_runs() -> None:
    for name in agents.names():
        config = settings_of("quick", name, "cube-single-play")[1]
        if "critic.target_rate" in config and not table(name, "online"):
            assert config["critic.target_rate"] == 0.02, name


@pytest.mark.parametrize("agent", ["fpmd_r", "fpmd_m", "dpmd"])
def test_the_warm_up_of_mirror_descent_comes_on_top_of_its_million(agent: str) -> None:
    run = published_run(agent, "HalfCheetah-v5")
    assert run["online.steps"] - run["online.warmup_steps"] == 1_000_000
    assert settings_of("quick", agent, "HalfCheetah-v5")[0]["online.steps"] == 200_000


def test_quick_gc_sscp_trains_in_two_stages_where_the_maze_is_large() -> None:
    run, config = settings_of("quick", "gc_sscp", "antmaze-large-navigate")
    stages = {"value.steps": 25_000, "decay.steps": 35_000, "value.horizon": 10, "value.target_rate": 0.02}
    own = {"subgoal_steps": 25, "low_alpha": 3.0, "high_alpha": 3.0, "learning_rate": 2e-3, "batch_size": 256}
    assert (stages | own | {"discount": 0.995, "hidden_dims": (256, 256, 256)}).items() <= config.items()
    assert (run["steps"], run["eval.interval"]) == (60_000, 10_000)
    assert (run["normalize.observations"], run["normalize.position_scale"]) == (True, 4)
    other_run, other = settings_of("quick", "gc_sscp", "pointmaze-medium-navigate")
    assert (other_run["steps"], other["value.steps"], other["decay.steps"], other["value.horizon"]) == (20_000, 0, 0, 1)


RIVALS = ("gcbc", "gcivl", "gciql", "qrl", "crl", "hiql", "lavl", "hsvl")


@pytest.mark.parametrize("agent", RIVALS)
def test_quick_rivals_of_gc_sscp_train_as_long_on_the_same_observations(agent: str) -> None:
    flat, _ = settings_of("quick", "gc_sscp", "antmaze-large-navigate")
    run, config = settings_of("quick", agent, "antmaze-large-navigate")
    assert {**run, "preset": ""} == {**flat, "preset": ""}
    assert (config["learning_rate"], config["hidden_dims"]) == (1e-3, (256, 256, 256))
    if "value.horizon" in config:
        assert (config["value.horizon"], config["value.target_rate"]) == (10, 0.02)
        assert config["value.steps"] == (0 if config.get("low_actor_rep_grad") else 25_000)


def test_the_slow_policy_of_cac_keeps_up_with_a_quick_run() -> None:
    rates = [settings_of(preset, "cac", "hopper-medium-v2")[1]["actor_target.rate"] for preset in ("quick", "paper")]
    assert rates == [0.1, 0.005]


def test_quick_iql_learns_mujoco_sets_at_its_published_rates() -> None:
    for dataset in presets.datasets("iql"):
        mujoco = dataset.startswith(("hopper", "walker2d", "halfcheetah"))
        _, config = settings_of("quick", "iql", dataset)
        rates = config["learning_rate"], config["critic.target_rate"]
        assert rates == ((3e-4, 0.005) if mujoco else (1e-3, 0.02)), dataset


def test_quick_cal_ql_proposes_fewer_actions() -> None:
    config = settings_of("quick", "cal_ql", "antmaze-large-navigate-singletask")[1]
    small = (256, 256, 256)
    expected = {"proposals": 4, "hidden_dims": small, "critic.hidden_dims": small, "critic.target_rate": 0.02}
    assert expected.items() <= config.items()


def test_a_missing_preset_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"gc_sscp has no published settings for scene-play; choose --preset=quick"):
        presets.lookup("paper", "gc_sscp", "scene-play")
    with pytest.raises(UserError, match="choose paper, quick or none"):
        presets.lookup("papers", "gc_sscp", "scene-play")


def test_experts_have_ogbenchs_settings() -> None:
    bodies = {
        body: settings_of("paper", "sac", f"online-{body}-v0") for body in ("ant-xy", "humanoid-xy", "antball-ends")
    }
    run, config = bodies["humanoid-xy"]
    assert config["critic.hidden_dims"] == (1024, 1024, 1024)
    assert (config["critic.aggregate"], run["online.updates_per_step"]) == ("mean", 0.25)
    run, config = bodies["antball-ends"]
    assert (run["online.steps"], config["critic.layer_norm"]) == (12_000_000, True)
    for run, config in bodies.values():
        expected = {"activation": "gelu", "critic.activation": "gelu", "learning_rate": 1e-4, "target_entropy": -0.5}
        assert expected.items() <= config.items()
        assert run["online.warmup_steps"] == 10_000
    assert agents.default("sac").activation == "relu"


FAULTS = {
    "flowrl/experiment/presets/__init__.py": [
        ('("offline_to_online",) * online + ', "", "test_fql_goes_online_with_every_published_row"),
        ("if flag in has or not", "if not", "test_quick_settings_of_any_agent_are_those_that_it_has"),
    ],
    "flowrl/experiment/settings.py": [
        (
            "env.published, online=asked.online.steps > 0)",
            "env.published, online=False)",
            "test_a_run_that_goes_online_starts_from_the_settings_for_it",
        ),
    ],
    "flowrl/experiment/presets/paper/sac.csv": [
        ("0,40000000,0.25,10000", "0,40000000,0.25,5000", "test_experts_have_ogbenchs_settings"),
    ],
}
