"""TD3+BC, ReBRAC, IQL, IFQL and IDQL: published settings."""

import jax
import pytest
from baselines import batch_of
from small_agents import SPEC

from flowrl import agents
from flowrl.config import check, put
from flowrl.experiment import presets
from flowrl.run_folder import texts

# ------------------------------------------------------------------------------------------------------- presets


def published(name: str, dataset: str) -> dict[str, str]:
    """The flags of a row, those of the run and the agent's."""
    preset = presets.lookup("paper", name, dataset)
    return preset.run | {f"agent.{flag}": text for flag, text in preset.agent.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("td3_bc", 15), ("rebrac", 106), ("iql", 90), ("ifql", 88), ("idql", 87)])
def test_published_rows_build(name: str, rows: int) -> None:
    known = presets.datasets(name)
    assert len(known) == rows
    structures = set()
    for dataset in known:
        preset = presets.lookup("paper", name, dataset)
        config = put(agents.default(name), texts.read(agents.default(name), preset.agent))
        check(config, "agent.")
        structures.add(jax.tree.structure(config))
    for structure in structures:
        config = jax.tree.unflatten(structure, [0.5] * structure.num_leaves)
        agent = agents.build(name, config, SPEC)
        state = jax.eval_shape(agent.init, jax.random.key(0), config)
        after, _ = jax.eval_shape(agent.update, state, batch_of(), jax.random.key(0))
        assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, state)


@pytest.mark.parametrize(
    ("name", "dataset", "flags"),
    [
        ("td3_bc", "hopper-medium-v2", {"normalize.observations": "True", "agent.alpha": "2.5"}),
        ("rebrac", "hopper-medium-v2", {"agent.alpha_actor": "0.01", "agent.alpha_critic": "0.01", "steps": "1000000"}),
        (
            "rebrac",
            "antmaze-large-diverse-v2",
            {"agent.learning_rate": "5e-05", "agent.discount": "0.999", "normalize.reward_scale": "100"},
        ),
        (
            "rebrac",
            "cube-double-play-singletask",
            {"agent.alpha_actor": "0.1", "agent.alpha_critic": "0", "agent.joint": "True"},
        ),
        (
            "iql",
            "antmaze-umaze-v2",
            {"agent.value.expectile": "0.9", "agent.alpha": "10", "normalize.reward_shift": "-1"},
        ),
        ("iql", "kitchen-mixed-v0", {"agent.value.expectile": "0.7", "agent.alpha": "0.5", "agent.dropout": "0.1"}),
        ("iql", "puzzle-4x4-play-singletask", {"agent.alpha": "3", "agent.hidden_dims": "256,256,256,256"}),
        ("ifql", "antsoccer-arena-navigate-singletask", {"agent.choice.num_samples": "64", "agent.discount": "0.995"}),
        ("ifql", "antmaze-umaze-v2", {"steps": "500000", "normalize.reward_shift": "-1"}),
        (
            "idql",
            "hopper-medium-v2",
            {"steps": "3000000", "normalize.rewards": "returns", "agent.value.expectile": "0.7"},
        ),
        ("idql", "scene-play-singletask", {"agent.choice.num_samples": "32", "agent.critic.hidden_dims": "256,256"}),
        ("idql", "scene-play-singletask", {"steps": "1000000", "agent.decay.steps": "1000000"}),
    ],
)
def test_published_values(name: str, dataset: str, flags: dict[str, str]) -> None:
    assert flags.items() <= published(name, dataset).items()


def test_published_runs_that_go_on_online() -> None:
    online = [presets.lookup("paper", "iql", "antmaze-large-play-v2", online=on).agent for on in (False, True)]
    assert online[1] == online[0] | {"decay.steps": "0"}
    for dataset in (f"antmaze-{size}-{how}-v2" for size in ("medium", "large") for how in ("play", "diverse")):
        offline, further = (presets.lookup("paper", "cal_ql", dataset, online=on) for on in (False, True))
        assert further.run == offline.run | {"online.offline_share": "0.5"}
        assert (further.run["normalize.reward_scale"], further.run["normalize.reward_shift"]) == ("10", "-5")
        assert further.agent == offline.agent == {"lagrange": "True", "target_gap": "0.8"}
