"""The papers' studies as commands, on a made-up file."""

import json
from pathlib import Path
from typing import Any

import pytest
from programs import load, save_walks

from flowrl.errors import UserError

studies = load("experiments/studies.py")
studies.MAIN = Path(__file__).parents[1] / "experiments" / "main.py"
TINY = ("--steps=2", "--eval_interval=1", "--eval_episodes=1", "--agent.hidden_dims=4", "--agent.batch_size=4")


def run(*arguments: object) -> int:
    return studies.main(["studies.py", *map(str, arguments)])


def test_every_variant_is_a_setting_of_its_agent() -> None:
    from flowrl import agent as agents

    for study in studies.STUDIES.values():
        assert study.field in {field.name for field in studies.dataclasses.fields(agents.load(study.agent).Config)}


def test_defaults_give_way_to_what_is_given() -> None:
    assert studies.passed_on(["--env=hopper-medium-v2", "--seed=3"]) == [
        "--preset=quick", "--num_seeds=3", "--env=hopper-medium-v2", "--seed=3",
    ]  # fmt: skip
    assert studies.public(["--data=/home/me/x.npz", "--out=/y", "--data=collected"]) == [
        "--data=FILE",
        "--data=collected",
    ]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("which study?", []),
        ("did you mean sscp_alpha2?", ["sscp_alpha"]),
        ("--agent is set by the study", ["sscp_alpha2", "--agent=fql"]),
        ("write --name=value", ["sscp_alpha2", "--resume"]),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, message: str, arguments: list[str]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(*arguments, f"--out={tmp_path}")
    assert "\n" not in str(caught.value)


def test_a_study_from_runs_to_table_and_on_again(tmp_path: Path, capfd: Any) -> None:
    data = save_walks(tmp_path / "tiny.npz")
    shared = ("--env=pointmaze-medium-navigate-singletask", f"--data={data}", "--num_seeds=2", "--workers=1", *TINY)
    arguments = ("ofql_time_sampler", f"--out={tmp_path / 'out'}", *shared)
    assert run(*arguments) == 0
    folder = tmp_path / "out" / "ofql_time_sampler"
    for value in ("logit_normal", "uniform"):
        assert {path.name for path in (folder / f"time_sampler={value}").iterdir()} == set(studies.KEPT)
    text = (folder / "table.json").read_text()
    table = json.loads(text)
    assert str(tmp_path) not in text + "".join(path.read_text() for path in folder.glob("*/*.json"))
    assert [row["variant"] for row in table["variants"]] == ["time_sampler=logit_normal", "time_sampler=uniform"]
    assert set(table["variants"][0]["per_seed"]) == {"0", "1"}
    assert "--agent.time_sampler=uniform" in table["variants"][1]["command"]
    assert (folder / "table.png").read_bytes().startswith(b"\x89PNG")
    first, *_ = (folder / "table.md").read_text().splitlines()[2:]
    numbers = table["variants"][0]["per_seed"].values()
    assert first.endswith(f"| {', '.join(f'{100 * value:.1f}' for value in numbers)} |")
    capfd.readouterr()
    assert run(*arguments) == 0
    assert capfd.readouterr().out.count("finished before") == 2
    assert (folder / "table.json").read_text() == text
    with pytest.raises(UserError, match="choose another --out"):
        run(*arguments, "--seed=5")
