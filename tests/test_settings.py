"""Settings: what a run records about itself makes the same run again."""

import json
from typing import Any

import pytest

from flowrl import config as configs
from flowrl.cli import shared
from flowrl.errors import UserError
from flowrl.experiment.settings import Plan, Settings, plan
from flowrl.experiment.stored import command, read_config
from flowrl.run_folder import texts


def parsed(line: str) -> Plan:
    return plan(*shared.given(line.split()[1:], (Settings(),), read_config))


def recorded(made: Plan) -> dict[str, Any]:
    return {
        "settings": configs.values(made.settings),
        "agent_config": configs.values(made.config),
        "data": {"origin": made.settings.data},
    }


def test_the_recorded_command_makes_the_same_run() -> None:
    run = {"agent": "gc_sscp", "env": "antmaze-large-stitch-v0", "preset": "quick", "data": "collected", "seed": 3}
    agent = {"hidden_dims": (32, 16), "low_alpha": 2.5, "batch_size": 64}
    first = plan(run | {"num_seeds": 2, "steps": 123, "checkpoint.interval": 77, "workers": 3}, agent)
    line = command(recorded(first))
    again = parsed(line)
    assert (again.settings, again.config) == (configs.put(first.settings, {"workers": None}), first.config)
    assert "--agent.hidden_dims=32,16" in line
    assert "--checkpoint.interval=77" in line
    assert "subgoal_steps" not in line  # the preset's own value
    assert "workers" not in line  # where it was done, not what


@pytest.mark.parametrize(
    ("agent", "name", "published"),
    [
        ("sscp", "collected:halfcheetah-medium", "halfcheetah-medium-v2"),
        ("hiql", "puzzle-3x3-play-oraclerep", "puzzle-3x3-play"),
    ],
)
def test_data_of_another_name_have_the_settings_they_were_published_under(
    agent: str, name: str, published: str
) -> None:
    ours, theirs = (plan({"agent": agent, "env": env, "preset": "paper"}, {}) for env in (name, published))
    assert ours.config == theirs.config
    assert ours.config != type(ours.config)()
    assert "--agent." not in command(recorded(ours))  # all are the preset's


def test_what_json_keeps_comes_back_as_it_was() -> None:
    given = {"agent": "sac", "env": "Pendulum-v1", "online.steps": 100, "online.updates_per_step": 2.0, "workers": 3}
    made = plan(given | {"online.warmup_steps": 5}, {"critic.hidden_dims": (8, 4), "learning_rate": 1.0})
    for own, usual in ((made.settings, Settings()), (made.config, configs.put(made.config, {"learning_rate": 0.5}))):
        stored = json.loads(json.dumps(configs.values(own)))
        again = texts.of_json(usual, stored)
        assert again == own
        assert repr(again) == repr(own)  # with the same types
    whole = configs.values(made.config) | {"learning_rate": 1}  # as a hand would write it
    assert repr(texts.of_json(made.config, whole)) == repr(made.config)


@pytest.mark.parametrize("name", ["normalize.rewards", "normalize.reward_scale", "normalize.reward_shift"])
def test_rewards_of_goals_are_not_normalised(name: str) -> None:
    given = {"agent": "gcbc", "env": "pointmaze-medium-navigate", "preset": "none"}
    assert plan(given | {"normalize.observations": True}, {}).settings.normalize.observations
    with pytest.raises(UserError, match="gcbc is goal-conditioned, its rewards are -1 and 0; leave out") as caught:
        plan(given | {name: 2.0 if "_" in name else "range"}, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "given", "refused"),
    [
        ("antmaze-large-navigate", {"normalize.observations": True}, ""),
        (
            "antmaze-large-navigate",
            {},
            "scales the normalised position in a maze; give --normalize.observations=True",
        ),
        ("scene-play", {"normalize.observations": True}, "--normalize.position_scale=4 scales the normalised position"),
    ],
)
def test_a_position_is_scaled_where_one_is_normalised(env: str, given: dict[str, bool], refused: str) -> None:
    told = {"agent": "gcbc", "env": env, "preset": "none", "normalize.position_scale": 4.0}
    if not refused:
        assert plan(told | given, {}).settings.normalize.position_scale == 4
        return
    with pytest.raises(UserError, match=refused) as caught:
        plan(told | given, {})
    assert "\n" not in str(caught.value)


def test_a_preset_that_sets_what_an_agent_has_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(("dataset", "setting"), "") | {"agent": "bc", "source": "x", "agent.wings": "2"}
    monkeypatch.setattr("flowrl.experiment.presets.table", lambda name, agent: (row,))
    with pytest.raises(UserError, match=r"the preset quick sets --agent\.wings, which bc has not; give --preset=none"):
        plan({"agent": "bc", "env": "Pendulum-v1", "preset": "quick"}, {})


FAULTS = {
    "flowrl/normalize.py": [
        ("(normalization.observations and maze)", "maze", "test_a_position_is_scaled_where_one_is_normalised"),
        ("observations and maze)", "observations)", "test_a_position_is_scaled_where_one_is_normalised"),
        (', "position_scale": 1.0})', "})", "test_a_position_is_scaled_where_one_is_normalised"),
    ],
    "flowrl/experiment/settings.py": [
        (
            "env.published, online",
            "env.name, online",
            "test_data_of_another_name_have_the_settings_they_were_published_under",
        ),
    ],
    "flowrl/experiment/stored.py": [
        (
            'tasks.parse(told["env"]).published',
            'told["env"]',
            "test_data_of_another_name_have_the_settings_they_were_published_under",
        ),
    ],
}
