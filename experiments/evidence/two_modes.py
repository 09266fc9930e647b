"""Which policies keep two modes of their data, and which pick the better one.

python experiments/evidence/two_modes.py

A bandit: actions of two dimensions lie near (-0.5, -0.5) or (0.5, 0.5), half each; the reward falls from 1 at the
second to 0.02 at the first. Each agent clones, without Q, and then learns with it. One draw of its policy is
measured, and where it is evaluated so the best of several.
"""

if __name__ == "__main__":
    import flowrl.cli.start  # noqa: F401 - before the other imports, which take seconds

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from flowrl import agents
from flowrl.agent import Agent
from flowrl.cli import flags
from flowrl.config import put, record, static, values
from flowrl.errors import UserError
from flowrl.machine.provenance import git_commit, hardware, versions
from flowrl.networks import Spec
from flowrl.run_folder import logs
from flowrl.train_state import Batch

CENTRES = np.array([[-0.5, -0.5], [0.5, 0.5]], np.float32)
DEVIATION, NEAR = 0.05, 0.2
"""Of actions about the centres; and how near to a centre a sample counts as of its mode."""
SPEC = Spec.of_sizes(1, 2)
ALL: dict[str, Any] = {
    "hidden_dims": (64, 64, 64),
    "critic.hidden_dims": (),
    "batch_size": 128,
    "horizon.steps": 1,
    "horizon.chunk": False,
}
RATES = ("learning_rate", "actor_learning_rate", "critic_learning_rate")
FASTER: dict[str, Any] = {
    "actor_target.start": 0, "actor_target.interval": 1, "actor_target_rate": 0.005, "decay.steps": 0,
    "schedule.steps": 0, "grid_updates": 2500, "flow.warmup": 250, "flow.grown": 1250,
    "width": 64, "time_dim": 64,
}  # fmt: skip
"""Settings that suit a short training: slow copies follow from its beginning, step sizes stay, intervals soon grow.

CAC's must follow fast too: what it knows of little noise passes to more of it from one copy to the next.
"""
ALWAYS = ("policy.", "distribution", "actor_target.")
"""What begins with one of these holds with Q too."""
WITHOUT_Q: dict[str, dict[str, Any]] = {
    "bc": {}, "bc (flow)": {"distribution": "flow"}, "td3_bc": {"alpha": 0.0}, "rebrac": {"alpha_actor": 1000.0},
    "iql": {"alpha": 0.0}, "ifql": {}, "bfn": {}, "idql": {}, "dql": {"q_alpha": 0.0},
    "dql (1 step of DDIM)": {"q_alpha": 0.0, "policy.sampler": "ddim", "policy.steps": 1}, "edp": {"q_alpha": 0.0},
    "cac": {"q_alpha": 0.0, "actor_target.rate": 0.05},
    "shortcut": {"q_alpha": 0.0}, "fbrac": {"alpha": 1e6}, "qam": {"inverse_temperature": 0.0},
    "sscp": {"q_alpha": 0.0}, "ofql": {"q_alpha": 0.0}, "fql": {"q_alpha": 0.0}, "driftql": {"alpha": 1000.0},
    "gfp": {"alpha": 1000.0, "eta": 1e6}, "meanflow_q": {"alpha": 1000.0, "balance.interval": 0}, "fmq": {},
}  # fmt: skip
"""For each label, the agent's name up to a space, the settings with which Q does not count; cloners count it never."""
WITH_Q: dict[str, dict[str, Any]] = {
    label: {name: value for name, value in told.items() if name.startswith(ALWAYS)}
    for label, told in WITHOUT_Q.items()
    if not label.startswith("bc")
} | {
    "fql": {"normalize_q": True}, "qam_f": {}, "qam_e": {}, "edp_crr": {}, "edp_iql": {}, "dsrl": {},
    "qflow": {"time_dim": 16}, "rql": {}, "cal_ql": {},
}  # fmt: skip


@record
class Settings:
    """What to train, and where the numbers go."""

    out: str = static("experiments/results/toys", "Folder of two_modes.json and its picture.")
    labels: str = static("", "Which of the policies, separated by commas; all if absent.")
    updates: int = static(2500, "Updates of each run.", high=1_000_000)
    num_seeds: int = static(3, "Runs of each, with seeds 0, 1, ...", high=100)
    samples: int = static(2000, "Actions that are drawn of each policy.", high=1_000_000)
    learning_rate: float = static(3e-3, "Adam's step size.", low=0)


def reward(actions: Any) -> Any:
    """Falls from 1 at the upper mode to exp(−4) = 0.02 at the lower one: `[..., 2]` to `[...]`."""
    return jnp.exp(-((actions - CENTRES[1]) ** 2).sum(axis=-1) / 0.5)


def batch_of(key: jax.Array, size: int) -> Batch:
    """Draws actions of the bandit, whose episodes have one step."""
    mode_key, noise_key = jax.random.split(key)
    centres = jnp.asarray(CENTRES)[jax.random.bernoulli(mode_key, shape=(size,)).astype(int)]
    actions = jnp.clip(centres + DEVIATION * jax.random.normal(noise_key, (size, 2)), -1, 1)
    s, zeros, ones = jnp.zeros((size, 1)), jnp.zeros(size), jnp.ones(size)
    return {
        "observations": s, "next_observations": s, "actions": actions, "next_actions": actions,
        "actions_valid": jnp.ones_like(actions), "rewards": reward(actions), "masks": zeros, "discounts": zeros,
        "valid": ones, "returns": reward(actions),
    }  # fmt: skip


def build(label: str, told: Mapping[str, Any], settings: Settings) -> tuple[Agent[Any], Any]:
    """Returns the agent of a label and its configuration."""
    name = label.split()[0]
    usual = agents.default(name)
    known = values(usual)
    shared = ALL | FASTER | dict.fromkeys(RATES, settings.learning_rate)
    config = put(usual, {**{field: value for field, value in shared.items() if field in known}, **told})
    return agents.build(name, config, SPEC), config


def samples_of(agent: Agent[Any], config: Any, settings: Settings) -> dict[str, np.ndarray]:
    """Trains all seeds in one program; returns for each way of acting what the policies draw `[seeds, samples, 2]`."""

    def train(key: jax.Array) -> dict[str, jax.Array]:
        init_key, data_key, update_key, act_key = jax.random.split(key, 4)

        def update(step: jax.Array, state: Any) -> Any:
            batch = batch_of(jax.random.fold_in(data_key, step), config.batch_size)
            return agent.update(state, batch, jax.random.fold_in(update_key, step))[0]

        state = jax.lax.fori_loop(0, settings.updates, update, agent.init(init_key, config))
        inputs = {"observations": jnp.zeros((settings.samples, 1))}
        return {
            mode: agent.act(agent.policy(state.replace(config=variant)), inputs, act_key)
            for mode, variant in agent.evaluations(state.config).items()
        }

    keys = jax.vmap(jax.random.key)(jnp.arange(settings.num_seeds))
    return {mode: np.asarray(drawn) for mode, drawn in jax.jit(jax.vmap(train))(keys).items()}


def measure(points: np.ndarray) -> dict[str, float]:
    """Returns the shares of points `[n, 2]` near each mode, and their mean reward."""
    distances = np.linalg.norm(points[:, None] - CENTRES, axis=-1)
    worse, better = (float((distances[:, i] < NEAR).mean()) for i in range(2))
    return {"worse_mode": worse, "better_mode": better, "reward": float(reward(points).mean())}


def draw(found: Mapping[str, np.ndarray], title: str, path: Path) -> None:
    """Draws the first seed's samples of each policy over the data's modes."""
    from matplotlib.figure import Figure

    columns = 6
    figure = Figure(figsize=(2 * columns, 2.2 * -(-len(found) // columns) + 0.5), layout="constrained")
    panels = figure.subplots(-(-len(found) // columns), columns, squeeze=False).ravel()
    for panel in panels[len(found) :]:
        panel.set_visible(False)
    for panel, (label, points) in zip(panels, found.items(), strict=False):
        panel.scatter(*CENTRES.T, s=450, color="#dddddd", linewidths=0)
        panel.scatter(*points[0, :1000].T, s=2, color="#0072B2", linewidths=0)
        panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[], yticks=[], aspect="equal", title=label)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str]) -> int:
    """Runs the program and returns its exit status."""
    settings = flags.read(Settings(), arguments, __doc__ or "")
    if settings is None:
        return 0
    labels = settings.labels.split(",") if settings.labels else [*WITHOUT_Q, *(set(WITH_Q) - set(WITHOUT_Q))]
    if unknown := sorted(set(labels) - set(WITHOUT_Q) - set(WITH_Q)):
        raise UserError(f"--labels: unknown {', '.join(unknown)}; choose of {', '.join(WITHOUT_Q)}")
    out, results, pictures = Path(settings.out), [], {"without_q": {}, "with_q": {}}
    out.mkdir(parents=True, exist_ok=True)
    report = {
        "command": " ".join(["python", "experiments/evidence/two_modes.py", *arguments[1:]]),
        "git_commit": git_commit(), "hardware": hardware(), "versions": versions("jax", "jaxlib"),
        "near": NEAR, "results": results,
    }  # fmt: skip
    parts = {"without_q": WITHOUT_Q, "with_q": WITH_Q}
    todo = [(part, label, told[label]) for part, told in parts.items() for label in labels if label in told]
    for part, label, told in tqdm(todo, unit="agent", disable=None):
        for mode, points in samples_of(*build(label, told, settings), settings).items():
            per_seed = [measure(own) for own in points]
            means = {name: float(np.mean([own[name] for own in per_seed])) for name in per_seed[0]}
            results.append({"part": part, "policy": label, "mode": mode, "told": told, **means, "per_seed": per_seed})
            shown = label if mode == "eval" else f"{label}, {mode.replace('_', ' ')}"
            pictures[part][shown] = points
            numbers = (
                f"worse {means['worse_mode']:4.0%} better {means['better_mode']:4.0%} reward {means['reward']:.2f}"
            )
            tqdm.write(f"{part:>9} {shown:<28} {numbers}")
        logs.write_json(out / "two_modes.json", report)  # after each, so that nothing is lost where it is stopped
    for part, title in (("without_q", "Cloning alone"), ("with_q", "With Q, which is larger at the upper right")):
        if pictures[part]:
            draw(pictures[part], title, out / f"two_modes_{part}.png")
    return 0


if __name__ == "__main__":
    flags.run(main)
