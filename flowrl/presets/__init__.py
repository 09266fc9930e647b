"""Published settings per dataset and agent, each with its source, and the quick settings for two CPU cores."""

import csv
import functools
from importlib import resources
from typing import Any, NamedTuple

from flowrl.errors import UserError

_OGBENCH = "OGBench, https://arxiv.org/abs/2410.20092, the authors' run commands"
_SSCP = "Single-Step Completion Policy, https://arxiv.org/abs/2506.21427, the authors' code"
_FQL = "Flow Q-Learning, https://arxiv.org/abs/2502.02538, the authors' run commands"
_BC = (
    "behaviour cloning with the networks and optimizer of Flow Q-Learning's baselines, https://arxiv.org/abs/2502.02538"
)
_OFQL = (
    "One-Step Flow Q-Learning, https://arxiv.org/abs/2508.13904; its weight of Q per task is unpublished: where given, "
    "a sequel's, else the agent's default"
)

# Column of the published tables -> field of an agent's Config, or of the run for those in _OF_RUN.
_COLUMNS = {
    "alpha": "alpha",
    "batch_size": "batch_size",
    "train_steps": "steps",
    "actor_p_randomgoal": "actor_p_random",
    "actor_p_trajgoal": "actor_p_trajectory",
    "discount": "discount",
    "high_alpha": "high_alpha",
    "low_alpha": "low_alpha",
    "subgoal_steps": "subgoal_steps",
    "low_actor_rep_grad": "low_actor_rep_grad",
    "offline_steps": "steps",
    "q_agg": "q_agg",
    "alpha2": "completion_alpha",
    "q_alpha": "q_alpha",
    "max_grad_norm": "max_grad_norm",
    "max_q_backup": "max_q_backup",
    "candidates": "candidates",
    "temperature": "candidate_temperature",
    "reward_scale": "reward_scale",
    "reward_shift": "reward_shift",
}
_OF_RUN = ("steps", "reward_scale", "reward_shift")
_RUN = dict(log_interval=5_000, checkpoint_interval=50_000)
_OGBENCH_RUN = dict(steps=1_000_000, eval_interval=100_000, eval_episodes=50, **_RUN)
_GC_SSCP_RUN = dict(steps=500_000, eval_interval=50_000, eval_episodes=20, **_RUN)
_SSCP_RUN = dict(steps=500_000, eval_interval=50_000, eval_episodes=10, **_RUN)
_OFQL_RUN = dict(steps=1_000_000, eval_interval=100_000, eval_episodes=150, **_RUN)

# Each table with its citation and the settings of a run that it goes with.
_TABLES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("ogbench_goal_conditioned.csv", _OGBENCH, _OGBENCH_RUN),
    ("gc_sscp.csv", _SSCP, _GC_SSCP_RUN),
    ("sscp.csv", _SSCP, _SSCP_RUN),
    ("ofql.csv", _OFQL, _OFQL_RUN),
    ("fql.csv", _FQL, _OGBENCH_RUN),
    ("fql_rewards.csv", _FQL, {}),  # what the released code does to D4RL's rewards
    ("bc.csv", _BC, _OGBENCH_RUN),
)

_QUICK_SOURCE = "quick: flowrl's own settings for two CPU cores, see docs/quick_preset.md; not a published setting"
_QUICK_RUN = dict(steps=20_000, eval_interval=2_500, eval_episodes=10, log_interval=500, checkpoint_interval=2_500)
# One task instead of five: as many episodes in all.
_QUICK_SINGLE_RUN = _QUICK_RUN | dict(eval_interval=5_000, eval_episodes=50)
QUICK_AGENT = dict(hidden_dims=(256, 256, 256), batch_size=256, learning_rate=1e-3, critic_target_rate=0.02)
_QUICK_OF: dict[str, dict[str, Any]] = {
    # At this step size and target rate the paper's critics without LayerNorm blow up.
    "ofql": dict(critic_layer_norm=True, candidates=1),
    # Most of its cost is the proposals, 10 in the paper.
    "cal_ql": dict(proposals=4, actor_hidden_dims=(256, 256, 256), actor_learning_rate=1e-3),
}


_ONLINE_RUN = dict(
    steps=0,
    eval_interval=20_000,
    eval_episodes=10,
    log_interval=1_000,
    checkpoint_interval=50_000,
    buffer_size=1_000_000,
)
_FPMD = "Flow Policy Mirror Descent, https://arxiv.org/abs/2507.23675, the authors' code"
# Their million of steps is counted from the end of the warm-up.
_FPMD_RUN = dict(online_steps=1_030_000, warmup_steps=30_000, num_envs=5, updates_per_step=0.2)
# Agents that learn online from scratch, with the papers' settings for all environments.
_ONLINE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sac": (
        "Soft Actor-Critic, https://arxiv.org/abs/1812.05905, appendix D",
        {},
        dict(online_steps=1_000_000, warmup_steps=10_000),
    ),
    "td3": (
        "Twin Delayed DDPG, https://arxiv.org/abs/1802.09477, the authors' code",
        {},
        dict(online_steps=1_000_000, warmup_steps=25_000),
    ),
    "fpmd_r": (_FPMD, {}, _FPMD_RUN),
    "fpmd_m": (_FPMD, {}, _FPMD_RUN),
    "dpmd": ("Diffusion Policy Mirror Descent, https://arxiv.org/abs/2502.00361, the authors' code", {}, _FPMD_RUN),
}
_ONLINE_QUICK = dict(online_steps=200_000, eval_interval=10_000)
_LOCOMOTION = "OGBench's SAC for the experts of its maze datasets, https://arxiv.org/abs/2410.20092, the authors' code"
_OGBENCH_SAC = dict(learning_rate=1e-4, target_entropy=-0.5, activation="gelu")
# Those for single environments.
_ONLINE_OF: dict[tuple[str, str], tuple[str, dict[str, Any], dict[str, Any]]] = {
    ("sac", "online-ant-xy-v0"): (
        _LOCOMOTION, _OGBENCH_SAC, dict(online_steps=400_000, warmup_steps=10_000)
    ),
    ("sac", "online-humanoid-xy-v0"): (
        _LOCOMOTION,
        _OGBENCH_SAC | dict(critic_hidden_dims=(1024, 1024, 1024), critic_layer_norm=True, q_agg="mean"),
        dict(online_steps=40_000_000, warmup_steps=10_000, updates_per_step=0.25),
    ),
    ("sac", "online-antball-ends-v0"): (
        _LOCOMOTION,
        _OGBENCH_SAC | dict(critic_layer_norm=True),
        dict(online_steps=12_000_000, warmup_steps=10_000, updates_per_step=0.25),
    ),
}  # fmt: skip


class Preset(NamedTuple):
    """A set of settings and where they come from.

    Attributes:
        name: `paper`, `quick` or `none`.
        source: Citation, for the banner.
        agent: Fields of the agent's `Config`.
        run: Fields of the run's configuration, such as `steps`.
    """

    name: str
    source: str
    agent: dict[str, Any]
    run: dict[str, Any]


def ogbench_datasets() -> frozenset[str]:
    """Returns the names of OGBench's datasets, without versions."""
    return frozenset(row["dataset"] for row in _rows("ogbench_goal_conditioned.csv"))


def datasets(agent: str) -> frozenset[str]:
    """Returns the names of the datasets for which an agent has published settings."""
    return frozenset(
        row["dataset"] for table, *_ in _TABLES for row in _rows(table) if row["agent"] == agent and _is_offline(row)
    )


def lookup(name: str, agent: str, dataset: str, *, online: bool = False) -> Preset:
    """Returns the preset `paper`, `quick` or `none` of an agent for a dataset named without its version.

    The quick preset has the same networks, batches and step sizes for all agents and stands on the published one: what
    it does not set itself (subgoal steps, discount, temperatures) is the dataset's published value.

    Args:
        name: Which preset.
        agent: The agent.
        dataset: The dataset.
        online: Whether the run goes on online after the data: where such runs have published settings, these hold from
            its beginning.

    Raises:
        UserError: There is no such preset; the message names those there are.
    """
    dataset = dataset.removesuffix("-oraclerep")  # the same data, shown the goal in another form
    if dataset.startswith("collected:"):
        dataset = f"{dataset.removeprefix('collected:')}-v2"  # the set of D4RL that it is made after
    if name == "none":
        return Preset("none", "none: the agent's defaults", {}, _OGBENCH_RUN)
    if name not in ("paper", "quick"):
        raise UserError(f"unknown preset {name!r}; choose paper, quick or none")
    if agent in _ONLINE:
        return _online(name, agent, dataset)
    published = _published(agent, dataset, "offline_to_online" if online else "offline")
    if name == "paper":
        if published is None:
            raise UserError(
                f"{agent} has no published settings for {dataset}; choose --preset=quick or --preset=none and give "
                "your own as --agent.<field>=value"
            )
        return published
    settings = (published.agent if published else {}) | QUICK_AGENT | _QUICK_OF.get(agent, {})
    shared = {name: published.run[name] for name in _OF_RUN[1:] if published and name in published.run}
    run = _QUICK_RUN if dataset in ogbench_datasets() else _QUICK_SINGLE_RUN
    return Preset("quick", _QUICK_SOURCE, settings, run | shared)


def _online(name: str, agent: str, env: str) -> Preset:
    """Returns the preset `paper` or `quick` of an agent that learns online; quick ones are only shorter."""
    source, settings, run = _ONLINE_OF.get((agent, env), _ONLINE[agent])
    published = Preset("paper", source, settings, _ONLINE_RUN | run)
    if name == "paper":
        return published
    return Preset("quick", f"quick: {source}; but shorter", published.agent, published.run | _ONLINE_QUICK)


def _published(agent: str, dataset: str, setting: str) -> Preset | None:
    """Joins the rows on an agent and a dataset; the first table that has one gives the source.

    In a table without a row for the setting, that for learning offline holds.
    """
    found: Preset | None = None
    for table, source, run in _TABLES:
        rows = [row for row in _rows(table) if (row["dataset"], row["agent"]) == (dataset, agent)]
        for row in [row for row in rows if row.get("setting") == setting] or [*filter(_is_offline, rows)]:
            settings = {field: _value(row[column]) for column, field in _COLUMNS.items() if row.get(column)}
            of_run = {name: settings.pop(name) for name in _OF_RUN if name in settings}
            found = found or Preset("paper", source, {}, dict(run))
            found = found._replace(agent=found.agent | settings, run=found.run | of_run)
    return found


def _is_offline(row: dict[str, str]) -> bool:
    return row.get("setting", "offline") == "offline"


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return int(text) if text.isdigit() else float(text)
    except ValueError:
        return text


@functools.cache
def _rows(table: str) -> tuple[dict[str, str], ...]:
    with (resources.files(__package__) / table).open() as lines:
        return tuple(csv.DictReader(lines))
