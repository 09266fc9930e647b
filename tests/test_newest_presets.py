"""Published settings of DriftQL, GFP and its ReBRAC, MeanFlowQL and FMQ: some by hand, and all of them build."""

from typing import Any

import jax
import pytest
from test_presets import check_builds, settings_of

from flowrl import agents, config
from flowrl.agents.rebrac import NAMES
from flowrl.experiment import presets
from flowrl.experiment.settings import Settings, plan

OFFLINE = {"driftql": 87, "gfp": 164, "rebrac_gfp": 129, "fmq": 1, "meanflow_q": 1}


@pytest.mark.parametrize(
    ("agent", "dataset", "values"),
    [
        ("driftql", "humanoidmaze-medium-navigate-singletask-task3", {"width": 0.5, "alpha": 65, "discount": 0.998}),
        ("driftql", "scene-play-singletask", {"width": 0.2, "alpha": 250, "discount": 0.995, "kernel": "gaussian"}),
        ("driftql", "scene-play-singletask", {"critic.aggregate": "min", "samples": 32, "noise_dim": 0}),
        ("driftql", "cube-double-play-singletask", {"samples": 4, "noise_dim": 8, "critic.aggregate": "mean"}),
        ("driftql", "hammer-cloned-v1", {"width": 0.05, "alpha": 2500, "discount": 0.99, "critic.aggregate": "mean"}),
        ("driftql", "walker2d-medium-expert-v2", {"width": 0.1, "alpha": 1000, "kernel": "laplace"}),
        ("gfp", "antmaze-giant-navigate-singletask-task2", {"alpha": 0.1, "eta": 0.1, "batch_size": 1024}),
        (
            "gfp",
            "antmaze-giant-navigate-singletask",
            {"critic.aggregate": "min", "reference": "min", "discount": 0.995},
        ),
        ("gfp", "humanoidmaze-large-navigate-singletask", {"flow.steps": 30, "target": "actor", "discount": 0.999}),
        ("gfp", "cube-double-play-singletask-task4", {"target": "mean", "reference": "actor", "eta": 0.01, "alpha": 1}),
        ("gfp", "pen-human-v1", {"alpha": 3, "eta": 1e-4, "flow_at_next": False, "normalize_q": True}),
        ("gfp", "minari:mujoco/walker2d/simple-v0", {"alpha": 3, "eta": 0.1, "batch_size": 1024}),
        ("rebrac_gfp", "antsoccer-arena-navigate-singletask", {"alpha_actor": 0.01, "discount": 0.995}),
        ("rebrac_gfp", "antmaze-large-explore-singletask", {"alpha_actor": 0.001, "alpha_critic": 0.1}),
        ("rebrac_gfp", "minari:mujoco/hopper/medium-v0", {"critic.aggregate": "mean", "batch_size": 1024}),
        ("fmq", "cube-triple-play-singletask-task4", {"horizon.steps": 5, "horizon.chunk": True, "adaptive": True}),
        ("meanflow_q", "humanoidmaze-large-navigate-singletask-task1", {"alpha": 6000, "time_levels": 50}),
    ],
)
def test_published_values(agent: str, dataset: str, values: dict[str, Any]) -> None:
    assert values.items() <= settings_of("paper", agent, dataset)[1].items()


def test_gfps_rebrac_is_fqls_with_other_weights() -> None:
    first, second = (settings_of("paper", name, "antmaze-large-navigate-singletask") for name in NAMES)
    assert {name for name, value in second[1].items() if value != first[1][name]} == {"alpha_actor", "discount"}
    assert second[0]["eval.episodes"] == 100


def test_published_runs() -> None:
    for agent, dataset, steps, episodes, shift in [
        ("driftql", "antmaze-umaze-v2", 1_000_000, 100, -1),
        ("driftql", "door-human-v1", 1_000_000, 10, 0),
        ("gfp", "antmaze-umaze-v2", 500_000, 100, -1),
        ("gfp", "scene-noisy-singletask", 1_000_000, 100, 0),
    ]:
        run, _ = settings_of("paper", agent, dataset)
        assert (run["steps"], run["eval.episodes"], run["normalize.reward_shift"]) == (steps, episodes, shift)
    run, own = settings_of("paper", "meanflow_q", "humanoidmaze-medium-navigate-singletask-task1", online=True)
    assert (run["normalize.observations"], own["alpha"], own["time_levels"]) == (True, 2000, 100)


@pytest.mark.slow
@pytest.mark.parametrize("agent", OFFLINE)
def test_every_row_builds_and_takes_a_step(agent: str) -> None:
    known = presets.datasets(agent)
    assert len(known) == OFFLINE[agent]
    made = [settings_of(kind, agent, dataset) for kind in ("paper", "quick") for dataset in sorted(known)]
    structures = set()
    for run, own in made:
        asked = config.put(agents.default(agent), own)
        config.check(asked, "agent.")
        config.check(config.put(Settings(), run))
        structures.add(jax.tree.structure(config.put(asked, {"hidden_dims": (8,), "batch_size": 4})))
    for structure in structures:
        check_builds(agent, structure)


@pytest.mark.slow
@pytest.mark.parametrize("agent", OFFLINE)
@pytest.mark.parametrize("chunk", [True, False])
def test_actions_may_be_chunks(agent: str, chunk: bool) -> None:
    told = {"hidden_dims": (8,), "horizon.steps": 3, "horizon.chunk": chunk, "batch_size": 4}
    check_builds(agent, jax.tree.structure(config.put(agents.default(agent), told)))


def test_the_quick_schedule_is_as_long_as_its_run() -> None:
    made = plan({"agent": "meanflow_q", "env": "cube-single-play-singletask", "preset": "quick"}, {})
    assert made.settings.steps == made.config.schedule.steps
    assert made.config.balance.interval == 0


FAULTS = {
    "flowrl/experiment/presets/quick/meanflow_q.csv": [
        ("0.001,20000,128", "0.001,10000,128", "test_the_quick_schedule_is_as_long_as_its_run"),
    ],
}
