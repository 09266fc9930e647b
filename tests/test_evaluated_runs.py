"""What runs make of what environments tell: numbers, success, ends and mistakes."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import own_envs
import pytest
from test_evaluate import fault, keys_of, policies_of, wanderer

from flowrl.envs import workers
from flowrl.envs.episodes import EnvironmentFailed
from flowrl.errors import UserError
from flowrl.experiment import examiner, run, settings, stored
from flowrl.reports import curves
from flowrl.run_folder import evaluations, logs
from flowrl.run_folder.runs import Run
from flowrl.training.evaluation import Evaluation, Evaluator

# -------------------------------------------------------------------------------------- what environments tell


OWN = {"hidden_dims": (8,), "batch_size": 8}


def own_run(folder: Path, env: str, **given: Any) -> settings.Plan:
    """A small run in an environment of the test's own, to be executed."""
    rng, data = np.random.default_rng(0), folder.parent / "own.npz"
    fields = {"observations": rng.normal(size=(16, 2)), "next_observations": rng.normal(size=(16, 2))}
    np.savez(data, actions=rng.uniform(-1, 1, (16, 1)), rewards=np.zeros(16), terminals=np.zeros(16), **fields)
    small: dict[str, Any] = dict(agent="bc", env=env, data=str(data), preset="none", run_dir=str(folder), workers=1)
    small |= {"steps": 4, "eval.interval": 2, "eval.episodes": 4, "log.interval": 2, "checkpoint.interval": 2}
    return settings.plan(small | given, OWN)


@pytest.mark.slow
def test_an_evaluation_goes_on_where_a_simulator_gives_no_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.execute(own_run(tmp_path / "some", "own_envs:own/Broken-v0", num_seeds=2)) == 0
    lines = logs.read_lines(tmp_path / "some" / "eval.jsonl")
    assert {line["return"] for line in lines} == {4.0}
    assert {line["episodes"] for line in lines} == {4}
    assert 0 < sum(line.get("not_finite", 0) for line in lines) < 16
    said = capsys.readouterr().out
    assert re.search(
        r"warning: own/Broken-v0: the reward is nan.*step 3 of evaluation episode \d \(run \d, task 1\)", said
    )
    summary = logs.read_json(tmp_path / "some" / "summary.json")
    assert (summary["metric"], summary["return"]) == ("return", 4.0)
    assert "not finite are left out" in summary["rule"]


@pytest.mark.slow
def test_a_run_without_any_finite_number_ends_well_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = "own_envs:own/Broken-v0"
    monkeypatch.setattr(own_envs.Broken, "__init__", lambda self: own_envs.Own.__init__(self))
    monkeypatch.setattr(Evaluator, "__call__", nothing_finite)
    for attribute, value in (("where", "none"), ("share", 0.0), ("broken", False)):
        monkeypatch.setattr(own_envs.Broken, attribute, value, raising=False)
    assert run.execute(own_run(tmp_path / "run", env)) == 0
    summary = logs.read_json(tmp_path / "run" / "summary.json")
    assert (summary["metric"], summary["rule"]) == (None, "no evaluation episode had finite numbers")
    plan, told = stored.resumed_plan({"run_dir": str(tmp_path / "run"), "resume": True, "steps": 6}, {})
    assert run.execute(plan, told) == 0
    lines = logs.read_lines(tmp_path / "run" / "eval.jsonl")
    assert [(line["step"], line["not_finite"]) for line in lines] == [(2, 4), (4, 4), (6, 4)]
    assert not any({"return", "success"} & line.keys() for line in lines)


def nothing_finite(self: Evaluator, policies: Any, *arguments: Any, **options: Any) -> Evaluation:
    nothing = np.full((1, 1, 4), np.nan, np.float32)
    return Evaluation(nothing, nothing, np.ones((1, 1, 4), np.int32))


@pytest.mark.slow
def test_success_is_judged_once_and_0_where_it_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first evaluation tells nothing, of the second one episode of one seed, the third again nothing."""
    outcomes = []
    for told in (0, 1, 0, 0):
        successes = np.full((2, 1, 4), np.nan, np.float32)
        successes[0, 0, :told] = 1
        outcomes.append(Evaluation(successes, np.zeros((2, 1, 4), np.float32), np.ones((2, 1, 4), np.int32)))
    monkeypatch.setattr(Evaluator, "__call__", lambda self, *_, **__: outcomes.pop(0))
    assert run.execute(own_run(tmp_path / "run", "own_envs:own/Own-v0", num_seeds=2, steps=6)) == 0
    plan, told = stored.resumed_plan({"run_dir": str(tmp_path / "run"), "resume": True, "steps": 8}, {})
    assert run.execute(plan, told) == 0
    lines = logs.read_lines(tmp_path / "run" / "eval.jsonl")
    assert [line.get("success") for line in lines] == [None, None, 0.25, 0, 0, 0, 0, 0]
    summary = logs.read_json(tmp_path / "run" / "summary.json")
    assert (summary["metric"], summary["success_per_seed"]) == ("success", [0.25 / 3, 0.0])
    assert evaluations.read_runs(tmp_path / "run", with_minutes=False)[0].curves == {
        0: {2: 0.0, 4: 0.25, 6: 0.0, 8: 0.0},
        1: {2: 0.0, 4: 0.0, 6: 0.0, 8: 0.0},
    }


def test_parts_of_a_sweep_that_were_told_no_success_had_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two sweeps has a part that reached nothing, so was told nothing; the other never tells it."""
    monkeypatch.setattr(curves, "identity", lambda config: config["agent_config"])
    parts = []
    for sweep, metric in (("one", "success"), ("other", "return")):
        config: dict[str, Any] = {"settings": {"env": sweep}}
        (tmp_path / sweep).mkdir()
        (tmp_path / sweep / "sweep.json").touch()
        for part, judged_by in enumerate(("return", metric)):
            own = config | {"agent_config": {"sweep": sweep, "part": part}}
            folder = tmp_path / sweep / f"part{part}"
            parts.append(evaluations.RunDir(folder, own, judged_by, {0: {2: 0.5}}, {}, 4, 1, ""))
    found = [(group.metric, group.final) for group in curves.group_runs(parts)]
    assert found == [("success", {0: 0.0}), ("success", {0: 0.5}), ("return", {0: 0.5}), ("return", {0: 0.5})]


@pytest.mark.slow
def test_episodes_that_end_from_the_start_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a seed's episodes are broken off at their reset; what the other's come to is not moved."""

    def start(self: workers.EnvPool, queues: Any, on_death: Any) -> workers.Slots:
        broken = [workers.Finished(0, np.nan, np.nan, 0, "nothing") for _ in range(2)]
        return workers.Slots(np.zeros((2, 2), np.float32), np.zeros((2, 0), np.float32), broken)

    def step(self: workers.EnvPool, actions: Any) -> workers.Slots:
        return workers.Slots(np.zeros((2, 2), np.float32), np.zeros((2, 0), np.float32), [workers.Finished(1, 1, 5, 1)])

    monkeypatch.setattr(workers.EnvPool, "start", start)
    monkeypatch.setattr(workers.EnvPool, "step", step)
    evaluator = Evaluator(wanderer(), fault, keys_of(3, 4), tasks=0, episodes=2, workers=1, slots=2)
    monkeypatch.setattr(evaluator, "_actor", lambda *_: np.zeros((2, 1, 1), np.float32))
    found = evaluator(policies_of(2))
    evaluator.close()
    np.testing.assert_array_equal(found.returns, [[[np.nan, np.nan]], [[5, 5]]])


@pytest.mark.slow
def test_a_limit_of_steps_belongs_to_the_run(tmp_path: Path) -> None:
    given = dict(num_seeds=1, max_episode_steps=3)
    assert run.execute(own_run(tmp_path / "run", "own_envs:own/Endless-v0", **given)) == 0
    plan, told = stored.resumed_plan({"run_dir": str(tmp_path / "run"), "resume": True, "steps": 6}, {})
    assert run.execute(plan, told) == 0
    assert [line["length"] for line in logs.read_lines(tmp_path / "run" / "eval.jsonl")] == [3, 3, 3]
    assert "--max_episode_steps=3" in told["command"]
    with pytest.raises(UserError, match="max_episode_steps=0 is too small"):
        own_run(tmp_path / "other", "own_envs:own/Endless-v0", max_episode_steps=0)


def test_episodes_of_a_run_are_those_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examiner, "Evaluator", lambda agent, factory, keys, **others: (keys, others["episodes"]))
    made = own_run(tmp_path / "run", "own_envs:own/Own-v0")
    keys, episodes = examiner.evaluator_of(None, made, 1, [Run(3, {}), Run(5, {})])  # type: ignore[arg-type,misc]
    assert episodes == 4
    for key, seed in zip(keys, (3, 5), strict=True):
        assert key == jax.random.key(seed)


def test_a_users_mistake_amid_a_run_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Evaluator, *arguments: Any, **options: Any) -> Evaluation:
        raise EnvironmentFailed("own/Own-v0 failed in step 3: KeyError (own.py:7)")

    monkeypatch.setattr(Evaluator, "__call__", failing)
    with pytest.raises(UserError, match=r"own\.py:7\); mend the environment, and --resume --run_dir=.* from update 0"):
        run.execute(own_run(tmp_path / "run", "own_envs:own/Own-v0"))


FAULTS = {
    "flowrl/experiment/examiner.py": [
        ("[run.seed for run in runs]", "[0 for run in runs]", "test_episodes_of_a_run_are_those_of_its_seed"),
    ],
    "flowrl/training/evaluation.py": [
        (
            "        tally.note(view)\n        while",
            "        while",
            "test_episodes_that_end_from_the_start_are_counted",
        ),
    ],
    "flowrl/run_folder/summary.py": [
        (
            "good = np.isfinite(returns)",
            "good = np.isfinite(returns) | True",
            "test_an_evaluation_goes_on_where_a_simulator_gives_no_numbers",
        ),
        (
            "            if good.any():\n                line",
            "            if True:\n                line",
            "test_a_run_without_any_finite_number_ends_well_and_resumes",
        ),
        (
            "float(np.nan_to_num(told).mean())",
            "float(np.nanmean(told))",
            "test_success_is_judged_once_and_0_where_it_is_not_told",
        ),
        ("with_success(lines) if any(", "[*lines] if any(", "test_success_is_judged_once_and_0_where_it_is_not_told"),
    ],
    "flowrl/experiment/recorder.py": [
        (
            "with_success(lines) if self._told else lines",
            "lines",
            "test_success_is_judged_once_and_0_where_it_is_not_told",
        ),
        ("        self._told = any(", "        any(", "test_success_is_judged_once_and_0_where_it_is_not_told"),
    ],
    "flowrl/experiment/run.py": [
        (
            "        except EnvironmentFailed as error:",
            "        except ZeroDivisionError as error:",
            "test_a_users_mistake_amid_a_run_says_how_it_goes_on",
        ),
    ],
    "flowrl/reports/curves.py": [
        ("    runs = _sweeps_alike(runs)\n", "", "test_parts_of_a_sweep_that_were_told_no_success_had_none"),
    ],
    "flowrl/experiment/stored.py": [
        ("env.limited(settings.max_episode_steps)", "env.limited(None)", "test_a_limit_of_steps_belongs_to_the_run"),
    ],
}
