"""What the banner says of a dataset: by hand, and nothing in doubt where nothing is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands import save_walks

from flowrl import tasks
from flowrl.experiment import run
from flowrl.experiment.build import prepare
from flowrl.experiment.settings import plan
from flowrl.machine import devices
from flowrl.tasks import description
from flowrl.tasks.fields import Expected, Reading

# Episodes of 3, 1 and 4 transitions.
TERMINALS = np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1], bool)


def arrays(**changed: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    fields = {
        "observations": np.stack([np.arange(11), rng.normal(size=11)], axis=1).astype(np.float32),
        "actions": np.linspace(-1, 1, 22).reshape(11, 2).astype(np.float32),
        "rewards": np.arange(11, dtype=np.float32),
        "masks": np.ones(11, np.float32),
        "terminals": TERMINALS,
    }
    return {name: array for name, array in (fields | changed).items() if array is not None}


def test_facts_by_hand() -> None:
    observations = np.array([[-2.5, 3.0]] * 10 + [[7.25, 0.0]], np.float32)
    actions = np.zeros((11, 2), np.float32)
    actions[0], actions[1], actions[3] = [-0.5, 1 - 1e-5], [0.25, 0.125], [-1, -1]  # row 3 has no transition
    found = arrays(observations=observations, actions=actions)
    lines = description.facts(Reading(found, 8, ("infos", "qpos")))
    assert lines == [
        "8 rows: 8 transitions in 3 episodes of 1 to 4 steps, 3 in the median",
        "returns 3 to 30, 12.33 in the mean",  # 0 + 1 + 2, 4, 6 + 7 + 8 + 9
        "observations of 2 numbers in [-2.5, 7.25]; actions of 2 in [-0.5, 1], 6% of them at a bound",
        "not read: infos, qpos",
    ]
    alike = arrays(rewards=None, masks=None, terminals=np.arange(11) == 10)
    assert description.facts(Reading(alike, 11))[:1] == ["11 rows: 10 transitions in 1 episode of 10 steps each"]
    assert len(description.facts(Reading(alike, 11))) == 2


def test_nothing_is_in_doubt_about_good_data() -> None:
    assert description.doubts(arrays(), limit=4, bounds=True) == []
    assert description.doubts(arrays(rewards=None, masks=None)) == []
    assert description.small(arrays(), 8) == []


def column(name: str, index: int, values: Any) -> dict[str, np.ndarray]:
    changed = arrays()[name].copy()
    changed[:, index] = values
    return {name: changed}


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        (column("observations", 1, 5.0), "observations never change in column 1"),
        ({"observations": np.ones((11, 2), np.float32)}, "all observations are the same"),
        (
            column("observations", 0, np.arange(11) * 1e9),
            "observations reach 1e+10, in column 0: bring them to a smaller",
        ),
        ({"actions": np.zeros((11, 2), np.float32)}, "all actions are 0"),
        ({"actions": np.full((11, 2), 0.5, np.float32)}, "all actions are the same"),
        (column("actions", 1, 0.25), "actions never change in column 1"),
        (
            {"actions": arrays()["actions"] / 2},
            "actions fill 43% of the bounds or less in columns 0, 1: are they in other",
        ),
        ({"actions": (arrays()["actions"] + 1) / 2}, "actions fill 43% of the bounds or less in columns 0, 1"),
        (column("actions", 0, np.linspace(-0.5, 0.5, 11)), "actions fill 45% of the bounds or less in column 0"),
        (
            {"actions": np.sign(arrays()["actions"])},
            "100% of the numbers of actions lie at a bound: were they clipped?",
        ),
        ({"rewards": np.zeros(11, np.float32)}, "all rewards are 0"),
        ({"rewards": np.where(TERMINALS, 0, -1).astype(np.float32)}, "all rewards are -1"),
        ({"rewards": arrays()["rewards"] * 1e8}, "rewards reach 9e+08: give a smaller --normalize.reward_scale"),
        ({"masks": np.zeros(11, np.float32)}, "every transition ends its episode for good"),
    ],
)
def test_what_is_implausible_is_said(changed: dict[str, np.ndarray], doubt: str) -> None:
    doubts = description.doubts(arrays(**changed), bounds=True)
    assert len(doubts) == 1
    assert doubts[0].startswith(doubt), doubts[0]


def test_episodes_of_a_single_step_are_said() -> None:
    doubts = description.doubts(
        {name: np.repeat(array, 2, axis=0) for name, array in arrays().items()} | {"terminals": np.arange(22) % 2 == 1}
    )
    assert doubts == ["11 of 11 episodes have a single step"]


def test_of_data_in_the_unit_box_one_gentle_action_is_no_doubt() -> None:
    gentle = arrays(**column("actions", 0, np.linspace(-0.5, 0.5, 11)))
    assert description.doubts(gentle, bounds=False) == []


def test_an_episode_beyond_the_limit_is_said() -> None:
    assert description.doubts(arrays(), limit=3) == [
        "1 of 3 episodes are longer than the environment's limit of 3 steps: are all ends marked?"
    ]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_tiny_sets_are_read_and_said(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    fields = {"observations": rng.normal(size=(rows, 3)), "next_observations": rng.normal(size=(rows, 3))}
    fields |= {"actions": rng.uniform(-2, 2, (rows, 1)), "rewards": rng.normal(size=rows), "terminals": np.zeros(rows)}
    np.savez(tmp_path / "own.npz", **fields)  # type: ignore[arg-type]
    env = tasks.parse("Pendulum-v1")
    reading = env.examine(env.locate(str(tmp_path / "own.npz")), Expected(3, 1, (-2,), (2,)))
    assert np.count_nonzero(~reading.arrays["terminals"]) == rows
    assert f"only {rows} transition" in " ".join(reading.notes)
    assert description.small(reading.arrays, rows) == []
    assert description.small(reading.arrays, 256)[0].startswith("a batch of 256 is larger than the set of")


def test_the_banner_says_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    observations = np.random.default_rng(0).uniform(0, 20, (120, 2)).astype(np.float32)
    observations[:, 1] = 4.0
    path = save_walks(tmp_path / "pointmaze-medium-navigate-v0.npz", observations=observations)
    given = {"agent": "gcivl", "env": "pointmaze-medium-navigate", "preset": "quick", "data": str(path)}
    made = plan(given, {"batch_size": 128, "hidden_dims": (8,), "value.steps": 9_000})
    source = made.env.locate(str(path))
    parts = prepare(made, source)
    states: Any = SimpleNamespace(params={"actor": np.zeros((1, 7))})
    run._announce(SimpleNamespace(parts=parts, layout=devices.ONE, states=states), source)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    low, high = observations.min(), observations.max()
    expected = f"""\
        data  file {path}
              120 rows: 114 transitions in 6 episodes of 19 steps each
              observations of 2 numbers in [{low:.4g}, {high:.4g}]; actions of 2 in [-0.99"""
    assert expected in said
    assert "              not read: qpos, qvel\n" in said
    assert "        note  observations never change in column 1\n" in said
    assert "        note  a batch of 128 is larger than the set of 114 transitions, and repeats them\n" in said
    until = "until update 9,000 (--agent.value.steps)"
    late = f"{until} values learn alone: evaluations say nothing yet, and updates take less time than later"
    assert f"        note  {late}\n" in said


FAULTS = {
    "flowrl/tasks/description.py": [
        ("prepend=-1) - 1", "prepend=-1)", "test_facts_by_hand"),
        ('inner_extent(arrays["actions"], inside)', 'extent(arrays["actions"])', "test_facts_by_hand"),
        ('share = bound_share(arrays["actions"], inside)', "share = 0", "test_facts_by_hand"),
        ("if reading.unread:", "if False:", "test_facts_by_hand"),
        ("if steps <= 5:", "if False:", "test_tiny_sets_are_read_and_said"),
        ("elif 2 * np.count_nonzero(lengths == 1) > steps:", "elif False:", "test_episodes_of_a_single_step_are_said"),
        ("if limit is not None and lengths.max() > limit:", "if False:", "test_an_episode_beyond_the_limit_is_said"),
        ("ranges[0] == ranges[1]", "ranges[0] > ranges[1]", "test_what_is_implausible_is_said"),
        ("if sizes.max() >= _HUGE:", "if False:", "test_what_is_implausible_is_said"),
        ("if constant.all():", "if False:", "test_what_is_implausible_is_said"),
        ("filled <= _NARROW", "filled < 0 * _NARROW", "test_what_is_implausible_is_said"),
        ("(high - low) / 2", "np.maximum(high, -low)", "test_what_is_implausible_is_said"),
        ("(bounds or narrow[~constant].all())", "True", "test_of_data_in_the_unit_box_one_gentle_action_is_no_doubt"),
        ("> 0.9:", "> 9:", "test_what_is_implausible_is_said"),
        ("if rewards.min() == rewards.max():", "if False:", "test_what_is_implausible_is_said"),
        ('arrays["masks"][inside].any()', "True", "test_what_is_implausible_is_said"),
        ("if transitions >= batch_size:", "if True:", "test_tiny_sets_are_read_and_said"),
    ],
    "flowrl/experiment/run.py": [
        ("(*runner.parts.doubts, *configs", "(*(), *configs", "test_the_banner_says_what_was_read"),
        ('configs.notes(plan.config, "agent.")', "()", "test_the_banner_says_what_was_read"),
        ("(source.detail, *runner.parts.contents)", "source.detail", "test_the_banner_says_what_was_read"),
    ],
}
