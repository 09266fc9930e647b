"""OGBench's published collection of its manipulation sets with the scripted oracles that the package ships.

`play`: open-loop plans with smooth noise, one after another, each toward a new random target. `noisy`: closed-loop
oracles with Gaussian noise of a size drawn per episode, and some random actions.

The oracles draw from numpy's global generator. It is the episode's own: `SeededEpisodes` has put it in place at
the reset, and a process plays one episode at a time. The noise, the random actions and the probability of stacking come
from the procedure's generator instead; that is ours.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from flowrl.collection.recipes import ENDLESS, FIELDS, Episode, Recipe, follow

PLAN_NOISE, PLAN_SMOOTHING, MIN_NORM = 0.1, 0.5, 0.4
MAX_NOISE = 0.1
"""The noise of a `noisy` episode is drawn uniformly up to this."""
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
"""Relative noise of the five actions: position, yaw, gripper."""
_JOINTS = 14
"""Positions of arm and gripper, which come first in qpos."""


class Place(NamedTuple):
    """What the recipes of one environment differ in.

    Attributes:
        cubes: Number of cubes; each has 7 positions.
        buttons: Number of buttons; each has 1 position, and a state in the file.
        slides: Drawers and windows; each has 1 position.
        episodes: Training episodes of the published sets.
        stack: Range of an episode's probability that a cube's target is on another cube.
    """

    cubes: int = 0
    buttons: int = 0
    slides: int = 0
    episodes: int = 1000
    stack: tuple[float, float] = (0.0, 0.0)

    @property
    def puzzle(self) -> bool:
        """Whether there are buttons alone."""
        return self.cubes == 0


PLACES = {
    "cube-single": Place(cubes=1),
    "cube-double": Place(cubes=2, stack=(0.0, 0.25)),
    "cube-triple": Place(cubes=3, episodes=3000, stack=(0.05, 0.35)),
    "cube-quadruple": Place(cubes=4, episodes=5000, stack=(0.1, 0.5)),
    "scene": Place(cubes=1, buttons=2, slides=2, stack=(0.5, 0.5)),
    "puzzle-3x3": Place(buttons=9),
    "puzzle-4x4": Place(buttons=16),
    "puzzle-4x5": Place(buttons=20, episodes=3000),
    "puzzle-4x6": Place(buttons=24, episodes=5000),
}


def recipe(name: str) -> Recipe | None:
    """Returns how one of OGBench's manipulation sets, named without version, is collected; None where it is none."""
    scene, _, kind = name.rpartition("-")
    place = PLACES.get(scene)
    if place is None or kind not in ("play", "noisy"):
        return None
    behaviour = play if kind == "play" else functools.partial(noisy, p_random=0.2 if place.puzzle else 0.1)
    moving = 7 * place.cubes + place.buttons + place.slides
    floats = (19 + 9 * place.cubes + 4 * place.buttons + 2 * place.slides) + 5 + 2 * (_JOINTS + moving)
    return Recipe(
        name=name,
        dataset=f"{name}-v0",
        env_id=f"{scene}-v0",
        kind=kind,
        play=follow,
        behaviour=functools.partial(behaviour, place=place),
        noise=PLAN_NOISE if kind == "play" else MAX_NOISE,
        episodes=place.episodes,
        length=1001,
        row_bytes=4 * floats + 8 * place.buttons + 1,
        fields=FIELDS | ({"button_states": np.int64} if place.buttons else {}),
        env_kwargs=(ENDLESS, ("mode", "data_collection")),
        accept=block_stays_visible if place.slides else None,
    )


def play(env: Any, generator: np.random.Generator, recipe: Recipe, *, place: Place) -> Episode:
    """Follows one plan after another."""
    stack = generator.uniform(*place.stack)
    _forget(env, place)
    observation, info = yield {}
    oracles = _plan_oracles(env, place)
    oracle = _begin(oracles, observation, info)
    while True:
        observation, info = yield np.clip(oracle.select_action(observation, info), -1.0, 1.0)
        oracle = _go_on(env, oracles, oracle, stack)


def noisy(env: Any, generator: np.random.Generator, recipe: Recipe, *, place: Place, p_random: float) -> Episode:
    """Acts by feedback, with noise and random actions."""
    stack, noise = generator.uniform(*place.stack), generator.uniform(0.0, recipe.noise)
    _forget(env, place)
    observation, info = yield {}
    oracles = _markov_oracles(env, place)
    oracle = _begin(oracles, observation, info)
    while True:
        if generator.uniform() < p_random:
            action = generator.uniform(-1.0, 1.0, len(NOISE_SHAPE))
        else:
            action = oracle.select_action(observation, info) + generator.normal(0.0, noise * NOISE_SHAPE)
        observation, info = yield np.clip(action, -1.0, 1.0)
        oracle = _go_on(env, oracles, oracle, stack)


def block_stays_visible(episode: Mapping[str, np.ndarray]) -> bool:
    """Whether a scene's block stays in view, or leaves it to the left only inside the drawer (OGBench's check)."""
    y, z = episode["qpos"][:, _JOINTS + 1], episode["qpos"][:, _JOINTS + 2]
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return bool((y < 0.29).all() and ((y > -0.3) | in_drawer).all())


def _forget(env: Any, place: Place) -> None:
    """Gives a scene the targets that it was constructed with, before it is reset.

    They outlive a reset where the new target is another thing, and the first action toward a later target still sees
    them: without this an episode would depend on those that its process has played before. Ours: the published
    procedure lets them carry over.
    """
    if place.slides:
        env._target_button, env._target_drawer_pos, env._target_window_pos = 0, 0.0, 0.0
        env._target_button_states[:] = 0
        for thing, axis in (("drawer", 1), ("window", 0)):
            env.model.site(f"{thing}_handle_center_target").pos[axis] = 0.0


def _begin(oracles: Mapping[str, Any], observation: np.ndarray, info: Mapping[str, Any]) -> Any:
    oracle = oracles[info["privileged/target_task"]]
    oracle.reset(observation, info)
    return oracle


def _go_on(env: Any, oracles: Mapping[str, Any], oracle: Any, stack: float) -> Any:
    """Returns the oracle for the next action; one that is done makes way for that of a new target.

    As in the published procedure, that action still sees the state of the old target.
    """
    return _begin(oracles, *env.set_new_target(p_stack=stack)) if oracle.done else oracle


def _plan_oracles(env: Any, place: Place) -> dict[str, Any]:
    from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

    common = dict(env=env, noise=PLAN_NOISE, noise_smoothing=PLAN_SMOOTHING)
    return {
        "cube": cube_plan.CubePlanOracle(**common),
        "button": button_plan.ButtonPlanOracle(gripper_always_closed=place.puzzle, **common),
        "drawer": drawer_plan.DrawerPlanOracle(**common),
        "window": window_plan.WindowPlanOracle(**common),
    }


def _markov_oracles(env: Any, place: Place) -> dict[str, Any]:
    from ogbench.manipspace.oracles.markov import button_markov, cube_markov, drawer_markov, window_markov

    # A limit of steps for the cube's oracle would be without effect: its `reset` sets the limit anew.
    common = dict(env=env, min_norm=MIN_NORM)
    return {
        "cube": cube_markov.CubeMarkovOracle(**common),
        "button": button_markov.ButtonMarkovOracle(gripper_always_closed=place.puzzle, **common),
        "drawer": drawer_markov.DrawerMarkovOracle(**common),
        "window": window_markov.WindowMarkovOracle(**common),
    }
