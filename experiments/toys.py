"""Shows which distribution each policy samples on two-dimensional toy data: python experiments/toys.py.

Every agent learns from the same five sets of actions at one constant observation: by behaviour cloning alone, and with
Q, where the reward is known in closed form. Numbers go to <out>/toys.json, pictures beside it; --draw_only draws them
anew from <out>/samples.npz.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.spatial
from tqdm import tqdm

from flowrl import agent as agents
from flowrl import flags, loggers
from flowrl.agent import Spec
from flowrl.config import setting
from flowrl.errors import UserError
from flowrl.files import make_folder, replacing
from flowrl.provenance import git_commit, hardware, versions
from flowrl.train_state import TrainState

DEFINITIONS = {
    "coverage": (
        "share of cells that samples reach: those with at least a tenth of the data's share of points; cells are the "
        "two modes (within 0.2 of a centre) or squares of side 0.1 that hold at least 0.1 % of the data"
    ),
    "on_support": "share of samples within 0.05 of the nearest of 20,000 data points",
    "sliced_wasserstein": "Wasserstein-1 distance to a fresh draw of data, mean over 64 directions",
    "reward": "mean reward of samples, on the data's support or not",
    "reward_on_support": "the same with nothing for samples off the support",
}
CELL, LEAST_SHARE, REACHED, RADIUS, MODE_RADIUS = 0.1, 1e-3, 0.1, 0.05, 0.2
POOL, SHOWN = 20_000, 1500
CENTRES = np.array([[-0.5, -0.5], [0.5, 0.5]])


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to train and where to put it."""

    out: str = setting("experiments/results/toys", "Folder of the results.")
    steps: int = setting(2500, "Updates of every run.")
    num_seeds: int = setting(3, "Runs of every agent, with seeds 0, 1, ...")
    batch_size: int = setting(128, "Actions per update.")
    width: int = setting(64, "Units of each of the three hidden layers of every network.")
    learning_rate: float = setting(3e-3, "Adam's step size.")
    samples: int = setting(5000, "Actions drawn from every policy.")
    datasets: str = setting("two_modes,ring,crescent,spiral,checkerboard", "Toy data, separated by commas.")
    parts: str = setting("bc,q,variants", "Behaviour cloning, with Q, and other settings on two modes alone.")
    draw_only: bool = setting(False, "Only draw the pictures of an earlier run in --out.")


class Method(NamedTuple):
    """An agent, settings other than its own (those in `hyper` without a new program), and label -> settings to act."""

    agent: str
    fields: dict[str, Any]
    hyper: dict[str, float]
    samplers: dict[str, dict[str, Any]]


_SSCP = dict(actor_target_rate=0.005, completion_alpha=0.1)
_OFQL = dict(actor_target_start=0, actor_target_interval=1)
_FQL = dict(normalize_q=True)
METHODS = {
    "bc": (
        Method("bc", dict(distribution="gaussian"), {}, {"bc gaussian": {}}),
        Method("bc", dict(distribution="flow"), {}, {"bc flow, 10 steps": {}}),
        Method("sscp", _SSCP, dict(q_alpha=0.0), {"sscp": {}, "sscp, 10 steps": dict(completion_steps=10)}),
        Method("ofql", _OFQL, dict(q_alpha=0.0), {"ofql": {}}),
        Method("fql", _FQL, dict(q_alpha=0.0), {"fql": {}}),
    ),
    "q": (
        Method("sscp", _SSCP, {}, {"sscp": {}}),
        Method("ofql", _OFQL, {}, {"ofql": {}}),
        Method("fql", _FQL, {}, {"fql": {}}),
    ),
    "variants": (
        Method("ofql", _OFQL, dict(q_alpha=0.0, flow_ratio=0.0), {"bc: ofql, flow_ratio=0": {}}),
        Method("ofql", _OFQL, dict(q_alpha=0.0, flow_ratio=1.0), {"bc: ofql, flow_ratio=1": {}}),
        Method("sscp", _SSCP | dict(completion_target="bootstrap"), dict(q_alpha=0.0), {"bc: sscp, bootstrap": {}}),
        Method("sscp", _SSCP, dict(q_alpha=0.1), {"q: sscp, q_alpha=0.1": {}}),
        Method("ofql", _OFQL, dict(q_alpha=0.01), {"q: ofql, q_alpha=0.01": {}}),
        Method("fql", _FQL, dict(q_alpha=0.1), {"q: fql, q_alpha=0.1": {}}),
    ),
}
VARIED = ("two_modes",)  # the data on which variants are trained


# ------------------------------------------------------------------------------------------------------- data


def draw_data(name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `count` actions of a toy distribution, `[count, 2]` float32 in [−1, 1]."""
    noise, share = rng.normal(size=(count, 2)), rng.uniform(size=count)
    if name == "two_modes":
        points = CENTRES[(share < 0.5).astype(int)] + 0.05 * noise
    elif name == "ring":
        points = 0.7 * _direction(2 * np.pi * share) + 0.03 * noise
    elif name == "spiral":
        turn = 3 * np.pi * np.sqrt(share)
        points = (0.8 * turn / (3 * np.pi))[:, None] * _direction(turn) + 0.02 * noise
    else:
        points = _rejected(name, count, rng)
    return np.clip(points, -1, 1).astype(np.float32)


def _direction(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _rejected(name: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform draws from a crescent, a disc less another, or from the dark squares of a 4 × 4 board."""
    points = rng.uniform(-0.9, 0.9, (12 * count, 2))
    if name == "crescent":
        inside = (np.linalg.norm(points, axis=1) < 0.85) & (np.linalg.norm(points - [0.35, 0], axis=1) > 0.7)
    else:
        squares = np.floor((points + 0.9) / 0.45).astype(int)
        inside = squares.sum(axis=1) % 2 == 0
    return points[inside][:count]


def reward(name: str, actions: np.ndarray) -> np.ndarray:
    """Returns what falls from 1 at the upper of the two modes to 0.02 at the other; elsewhere grows along x: `[n]`."""
    if name == "two_modes":
        return np.exp(-np.sum((actions - CENTRES[1].astype(np.float32)) ** 2, axis=-1) / (2 * 0.5**2))
    return (1 + actions[:, 0]) / 2


# --------------------------------------------------------------------------------------------------- measures


def cells(name: str, points: np.ndarray) -> np.ndarray:
    """Returns the number of each point's cell `[n]`, −1 for none."""
    if name == "two_modes":
        distances = np.linalg.norm(points[:, None] - CENTRES, axis=-1)
        return np.where(distances.min(axis=1) < MODE_RADIUS, distances.argmin(axis=1), -1)
    side = round(2 / CELL)
    index = np.clip(np.floor((points + 1) / CELL).astype(int), 0, side - 1)
    return index[:, 0] * side + index[:, 1]


def coverage(name: str, points: np.ndarray, data: np.ndarray) -> float:
    """Returns the share of the data's cells that points reach; see `DEFINITIONS`."""

    def shares(of: np.ndarray) -> np.ndarray:
        numbers = cells(name, of)
        return np.bincount(numbers[numbers >= 0], minlength=round(2 / CELL) ** 2) / len(of)

    expected = shares(data)
    held = expected >= LEAST_SHARE
    return float(np.mean(shares(points)[held] >= REACHED * expected[held]))


def sliced_wasserstein(points: np.ndarray, others: np.ndarray) -> float:
    """Returns the Wasserstein-1 distance of as many points each, averaged over 64 directions of the half circle."""
    directions = _direction(np.pi * np.arange(64) / 64)
    projected = [np.sort(each @ directions.T, axis=0) for each in (points, others)]
    return float(np.abs(projected[0] - projected[1]).mean())


def measure(name: str, points: np.ndarray, data: np.ndarray, fresh: np.ndarray) -> dict[str, float]:
    """Returns the numbers of `DEFINITIONS` for samples, judged by data and by a fresh draw of as many."""
    near = scipy.spatial.cKDTree(data).query(points)[0] <= RADIUS
    rewards = reward(name, points)
    return {
        "coverage": coverage(name, points, data),
        "on_support": float(near.mean()),
        "sliced_wasserstein": sliced_wasserstein(points, fresh),
        "reward": float(rewards.mean()),
        "reward_on_support": float((rewards * near).mean()),
    }


# --------------------------------------------------------------------------------------------------- training


def build(method: Method, settings: Settings, **fields: Any) -> agents.Agent:
    """Returns the agent of a method."""
    module = agents.load(method.agent)
    network = dict(hidden_dims=(settings.width,) * 3, batch_size=settings.batch_size)
    config = module.Config(learning_rate=settings.learning_rate, **network, **method.fields, **fields)
    return module.make(config, Spec(observation_dim=1, action_dim=2, goal_dim=0))


def trainer(agent: agents.Agent, settings: Settings) -> Callable[..., TrainState]:
    """Returns the training `(actions [N, 2], rewards [N], key, hyper) -> state`: a bandit, all masks are 0."""
    observations, masks = jnp.zeros((settings.batch_size, 1)), jnp.zeros(settings.batch_size)

    @jax.jit
    def train(actions: jax.Array, rewards: jax.Array, key: jax.Array, hyper: dict[str, Any]) -> TrainState:
        init_key, data_key, update_key = jax.random.split(key, 3)

        def step(state: TrainState, index: jax.Array) -> tuple[TrainState, None]:
            rows = jax.random.randint(jax.random.fold_in(data_key, index), (settings.batch_size,), 0, len(actions))
            batch = {"observations": observations, "next_observations": observations, "masks": masks}
            batch |= {"actions": actions[rows], "rewards": rewards[rows]}
            return agent.update(state, batch, jax.random.fold_in(update_key, index))[0], None

        return jax.lax.scan(step, agent.init(init_key, hyper), jnp.arange(settings.steps))[0]

    return train


def sampler(agent: agents.Agent, settings: Settings) -> Callable[[TrainState, jax.Array], jax.Array]:
    """Returns `(state, key) -> actions [samples, 2]` of the policy in mode `eval`."""
    observations, goals = jnp.zeros((settings.samples, 1)), jnp.zeros((settings.samples, 0))
    return jax.jit(lambda state, key: agent.act(agent.policy(state), observations, goals, key, mode="eval"))


def study(
    settings: Settings, names: Sequence[str], parts: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Trains and measures everything; returns records, and the first seed's samples by part, dataset and label."""
    data, fresh = ({name: draw_data(name, count, np.random.default_rng(seed)) for name in names}
                   for count, seed in ((POOL, 0), (settings.samples, 1)))  # fmt: skip
    records = []
    for name in names:
        means = measure(name, draw_data(name, settings.samples, np.random.default_rng(2)), data[name], fresh[name])
        means["best_reward"] = float(reward(name, data[name]).max())
        records.append({"part": "data", "dataset": name, "method": "data", "mean": means})
    points: dict[str, Any] = {f"data/{name}/data": data[name][:SHOWN] for name in names}
    todo = [(part, method, name) for part in parts for method in METHODS[part] for name in names]
    todo = [each for each in todo if each[0] != "variants" or each[2] in VARIED]
    programs: dict[str, Any] = {}
    with tqdm(total=len(todo) * settings.num_seeds, unit="run", disable=None) as bar:
        for part, method, name in todo:
            program = f"{method.agent} {method.fields}"
            train = programs.setdefault(program, trainer(build(method, settings), settings))
            found: dict[str, dict[str, Any]] = {label: {} for label in method.samplers}
            for seed in range(settings.num_seeds):
                state = train(data[name], reward(name, data[name]), jax.random.key(seed), method.hyper)
                for label, fields in method.samplers.items():
                    act = sampler(build(method, settings, **fields), settings)
                    act = programs.setdefault(f"{program} {fields}", act)
                    drawn = np.asarray(act(state, jax.random.fold_in(jax.random.key(seed), 1)))
                    found[label][str(seed)] = measure(name, drawn, data[name], fresh[name])
                    points.setdefault(f"{part}/{name}/{label}", drawn[:SHOWN])
                bar.update()
            records += [_record(part, name, label, method, per_seed) for label, per_seed in found.items()]
    return records, points


def _record(part: str, name: str, label: str, method: Method, per_seed: dict[str, Any]) -> dict[str, Any]:
    means = {key: float(np.mean([numbers[key] for numbers in per_seed.values()])) for key in DEFINITIONS}
    fields = method.fields | method.hyper | method.samplers[label]
    what = {"part": part, "dataset": name, "method": label, "agent": method.agent, "agent_settings": fields}
    return what | {"mean": means, "per_seed": per_seed}


# --------------------------------------------------------------------------------------------------- pictures


def draw(report: dict[str, Any], points: dict[str, np.ndarray], part: str, out: Path) -> None:
    """Draws one row per dataset, one column per policy."""
    from matplotlib.figure import Figure

    records = {(r["part"], r["dataset"], r["method"]): r["mean"] for r in report["results"]}
    names = [r["dataset"] for r in report["results"] if r["part"] == "data"]
    columns = [("data", "data")] + [(part, label) for method in METHODS[part] for label in method.samplers]
    figure = Figure(figsize=(1.95 * len(columns), 2.2 * len(names) + 1.1), layout="constrained")
    axes = figure.subplots(len(names), len(columns), squeeze=False)
    for row, name in enumerate(names):
        for column, (group, label) in enumerate(columns):
            panel, drawn = axes[row, column], points[f"{group}/{name}/{label}"]
            panel.scatter(*points[f"data/{name}/data"].T, s=1, color="#bbbbbb", linewidths=0, rasterized=True)
            if group != "data":
                single = np.ptp(drawn, axis=0).max() < 0.01
                panel.scatter(*drawn.T, s=60 if single else 2, color="#0072B2", linewidths=0, marker="o")
            panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[], yticks=[], aspect="equal")
            panel.set_xlabel(_numbers(records[group, name, label], part), fontsize=8)
            panel.set_title(label if row == 0 else "", fontsize=11)
        axes[row, 0].set_ylabel(name.replace("_", " "), fontsize=11)
    figure.suptitle(TITLES[part])
    figure.supxlabel(_caption(report, part, len(columns)), fontsize=9, x=0.01, ha="left")
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


TITLES = {
    "bc": "What each policy samples after behaviour cloning alone; one network call per action unless steps are named",
    "q": "What each one-step policy samples when it also maximises Q",
}


def _numbers(means: dict[str, float], part: str) -> str:
    best = f", best {means['best_reward']:.2f}" if "best_reward" in means else ""
    worth = f"\nreward {means['reward']:.2f}{best}" if part == "q" else ""
    return f"reaches {means['coverage']:.0%}, on it {means['on_support']:.0%}{worth}"


def _caption(report: dict[str, Any], part: str, columns: int) -> str:
    settings, seeds = report["settings"], ", ".join(map(str, report["seeds"]))
    text = (
        f"Grey: data. Blue: samples of seed {seeds[0]}. Numbers: mean of seeds {seeds}. reaches: share of the data's "
        f"modes or cells that samples reach; on it: share of samples within {RADIUS} of data. "
        f"{settings['steps']:,} updates of {settings['batch_size']} actions, 3 × {settings['width']} units. "
    )
    if part == "q":
        text += (
            "Reward: two modes: 1 at the upper right one, 0.02 at the other; elsewhere (1 + x) / 2, most at the right. "
        )
        text += "Weight of Q: each agent's default, in fql of the normalised Q. "
    return textwrap.fill(f"{text}Commit {str(report['git_commit'])[:9]}.", 30 * columns)


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings, arguments, __doc__ or "")
    if settings is None:
        return 0
    out = Path(settings.out).expanduser()
    names, parts = settings.datasets.split(","), settings.parts.split(",")
    for flag, given, known in (("datasets", names, Settings.datasets), ("parts", parts, Settings.parts)):
        if unknown := set(given) - set(known.split(",")):
            raise UserError(f"--{flag}: unknown {', '.join(sorted(unknown))}; choose from {known}")
    make_folder(out)
    if not settings.draw_only:
        records, points = study(settings, names, parts)
        flags_given = [each for each in arguments[1:] if not each.startswith("--out")]
        report = {
            "command": " ".join(["python experiments/toys.py", *flags_given]),
            "git_commit": git_commit(),
            "hardware": hardware(),
            "versions": versions("jax", "jaxlib", "flax", "optax", "numpy", "scipy"),
            "seeds": list(range(settings.num_seeds)),
            "settings": {key: value for key, value in dataclasses.asdict(settings).items() if key != "out"},
            "definitions": DEFINITIONS,
            "results": records,
        }
        loggers.write_json(out / "toys.json", report)
        with replacing(out / "samples.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{key: value.astype(np.float16) for key, value in points.items()})
    report, stored = loggers.read_json(out / "toys.json"), dict(np.load(out / "samples.npz"))
    for part in set(report["settings"]["parts"].split(",")) & set(TITLES):
        draw(report, stored, part, out / f"{part}.png")
        print(f"wrote {out / part}.png")
    return 0


if __name__ == "__main__":
    flags.run(main)
