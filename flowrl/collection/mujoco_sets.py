"""Offline sets of Gymnasium's MuJoCo tasks from our own SAC at several stages, after D4RL's: `collected:hopper-medium`.

The file of a body holds policies from the training of one SAC run (`experts.Snapshots`). The expert is the one of the
highest return, medium the first one that reaches a third of it.

- `random`: uniform actions; `medium` and `expert`: that policy's samples.
- `medium-replay`: equal shares of uniform actions and of every snapshot up to medium, where D4RL has the replay buffer.
- `medium-expert`: equal shares of both.

A set consists of stretches of 1,000 steps, in which an episode follows where one terminates.
"""

from typing import NamedTuple

import numpy as np

from flowrl.collection import experts
from flowrl.collection.recipes import Recipe
from flowrl.envs.episodes import SeededEpisodes

PREFIX = "collected:"
"""What stands before their names where a dataset is named."""
BODIES = {"halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5", "walker2d": "Walker2d-v5"}
STRETCH = 1000
STRETCHES = {"random": 1000, "medium": 1000, "medium-replay": 200, "medium-expert": 2000, "expert": 1000}
"""Kinds of sets, and how many stretches they have."""
PROCEDURE = "samples of flowrl's own SAC at several stages, after D4RL's sets"
FIELDS: dict[str, type] = {
    "observations": np.float32,
    "actions": np.float32,
    "rewards": np.float32,
    "terminals": np.bool_,
    "timeouts": np.bool_,
    "next_observations": np.float32,
}
_ROW_BYTES = 4 * (2 * 17 + 6 + 1) + 2  # of the largest body


class Name(NamedTuple):
    """What a name without `collected:` says."""

    body: str
    kind: str


NAMES = {f"{body}-{kind}": Name(body, kind) for body in BODIES for kind in STRETCHES}


def medium(returns: np.ndarray) -> int:
    """Index of the first snapshot whose return is at least a third of the highest."""
    return int(np.argmax(returns >= returns.max() / 3))


def policies(kind: str, returns: np.ndarray) -> tuple[int | None, ...]:
    """Returns who acts, in equal shares: indices of snapshots, and None for uniform actions.

    Args:
        kind: Of the set.
        returns: Of the snapshots, in the order of training `[S]`.
    """
    halfway, best = medium(returns), int(returns.argmax())
    shares: dict[str, tuple[int | None, ...]] = {
        "random": (None,),
        "medium": (halfway,),
        "medium-replay": (None, *range(halfway + 1)),
        "medium-expert": (halfway, best),
        "expert": (best,),
    }
    return shares[kind]


def recipe(dataset: str) -> Recipe:
    """Returns how a set is collected.

    Raises:
        UserError: flowrl ships no snapshots of that body.
    """
    name = NAMES[dataset]
    return Recipe(
        name=f"{PREFIX}{dataset}",
        dataset=dataset,
        env_id=BODIES[name.body],
        kind=name.kind,
        play=stretch,
        episodes=STRETCHES[name.kind],
        length=STRETCH,
        row_bytes=_ROW_BYTES,
        fields=FIELDS,
        procedure=PROCEDURE,
        unit="stretches",
        expert=name.body,
        policies=policies(name.kind, experts.snapshots(name.body).returns),
    )


def stretch(env: SeededEpisodes, recipe: Recipe, entropy: list[int]) -> dict[str, np.ndarray]:
    """Plays one stretch with the policy whose turn it is and returns its fields, one row per step."""
    index = recipe.policies[entropy[1] % len(recipe.policies)]
    policy = None if index is None else experts.snapshots(recipe.expert).policies[index]
    return rollout(env, policy, recipe.length, np.random.SeedSequence(entropy))


def rollout(
    env: SeededEpisodes, policy: experts.Layers | None, steps: int, seeds: np.random.SeedSequence
) -> dict[str, np.ndarray]:
    """Plays `steps` steps with a policy's samples, or uniform actions, from a new start after each episode.

    Args:
        env: Whose episodes end where they terminate or after `steps` steps.
        policy: Who acts.
        steps: How long.
        seeds: Fixes everything.

    Returns:
        The arrays in `FIELDS`, `[steps, ...]`; the last row ends its episode by a timeout if nothing else does.
    """
    actions, starts = seeds.spawn(2)
    generator = np.random.default_rng(actions)
    rows: dict[str, list] = {field: [] for field in FIELDS}
    observation = _reset(env, starts)
    for step in range(steps):
        if policy is None:
            action = generator.uniform(-1.0, 1.0, env.action_space.shape)
        else:
            action = experts.sample(policy, observation, generator)
        after, reward, terminated, truncated, _ = env.step(action)
        timeout = not terminated and (truncated or step == steps - 1)
        for field, value in zip(FIELDS, (observation, action, reward, terminated, timeout, after), strict=True):
            rows[field].append(value)
        observation = _reset(env, starts) if terminated or truncated else after
    return {field: np.array(rows[field], dtype) for field, dtype in FIELDS.items()}


def _reset(env: SeededEpisodes, starts: np.random.SeedSequence) -> np.ndarray:
    return env.reset(seed=int(starts.spawn(1)[0].generate_state(1)[0]))[0]
