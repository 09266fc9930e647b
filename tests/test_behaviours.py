import collections

import numpy as np
import pytest

from flowrl import tasks
from flowrl.collection import mazes
from flowrl.envs import making
from flowrl.errors import UserError

STITCH, NAVIGATE = "pointmaze-medium-stitch", "pointmaze-medium-navigate"


def make(name):
    known = tasks.parse(name)
    recipe = known.recipe()
    return making.make(known.env_id, terminate_at_goal=False, max_episode_steps=recipe.length), recipe


def distances(maze_map, start):
    """Shortest paths, written independently of OGBench's."""
    found, queue = {start: 0}, collections.deque([start])
    while queue:
        i, j = queue.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if maze_map[cell] == 0 and cell not in found:
                found[cell] = found[i, j] + 1
                queue.append(cell)
    return found


@pytest.fixture(scope="module")
def stitch():
    return make(STITCH)


@pytest.fixture(scope="module")
def navigate():
    return make(NAVIGATE)


@pytest.mark.parametrize(
    ("name", "episodes", "length"),
    [
        ("pointmaze-medium-navigate", 1000, 1001),
        ("pointmaze-teleport-navigate", 1000, 1001),
        ("pointmaze-giant-navigate", 500, 2001),
        ("pointmaze-giant-stitch", 5000, 201),
        ("pointmaze-large-stitch", 5000, 201),
    ],
)
def test_recipes_are_the_published_ones(name, episodes, length):
    recipe = tasks.parse(name).recipe()
    assert (recipe.episodes, recipe.length, recipe.noise) == (episodes, length, 0.5)


@pytest.mark.parametrize(
    ("name", "episodes", "length", "noise"),
    [
        ("antmaze-large-navigate", 1000, 1001, 0.2),
        ("antmaze-giant-navigate", 500, 2001, 0.2),
        ("antmaze-teleport-stitch", 5000, 201, 0.2),
        ("antmaze-medium-explore", 10_000, 501, 1.0),
    ],
)
def test_recipes_of_the_ant_are_the_published_ones(name, episodes, length, noise):
    recipe = tasks.parse(name).recipe()
    assert (recipe.episodes, recipe.length, recipe.noise, recipe.expert) == (episodes, length, noise, "ant")
    assert recipe.row_bytes == 4 * (29 + 8 + 15 + 14) + 1


def test_exploring_changes_direction_every_ten_steps():
    known = tasks.parse("pointmaze-medium-navigate")
    env = making.make(known.env_id, terminate_at_goal=False, max_episode_steps=31)
    recipe = tasks.parse("antmaze-medium-explore").recipe()._replace(actor=mazes.straight, noise=0.0)
    moves = mazes.explore(env.unwrapped, np.random.default_rng(0), recipe)
    observation, info = env.reset(seed=0, options=next(moves))
    actions = []
    for _ in range(30):
        actions.append(moves.send((observation, info)))
        observation, *_, info = env.step(actions[-1])
    tens = np.array(actions).reshape(3, 10, 2)
    np.testing.assert_allclose(np.linalg.norm(tens, axis=-1), 1, rtol=1e-6)
    assert (tens == tens[:, :1]).all()
    assert len(np.unique(tens[:, 0], axis=0)) == 3


@pytest.mark.parametrize("name", ["humanoidmaze-medium-stitch", "antsoccer-arena-navigate"])
def test_other_datasets_are_refused_with_a_remedy(name):
    with pytest.raises(UserError, match=rf"cannot collect {name} yet.*--data=PATH.*{name}-v0\.npz"):
        tasks.parse(name).recipe()


def test_turning_cells_leave_out_straight_corridor_only():
    maze_map = np.array(
        [
            [1, 1, 1, 1, 1, 1],
            [1, 0, 0, 0, 0, 1],
            [1, 0, 1, 1, 0, 1],
            [1, 0, 0, 0, 0, 1],
            [1, 0, 1, 0, 1, 1],
            [1, 1, 1, 1, 1, 1],
        ]
    )
    corridor = {(1, 2), (1, 3), (2, 1), (2, 4), (3, 2)}
    assert set(mazes.turning_cells(maze_map)) == set(mazes.free_cells(maze_map)) - corridor
    assert len(mazes.free_cells(maze_map)) == 12


def test_direction_is_the_oracle_s(navigate):
    env, _ = navigate
    env.reset(seed=0)
    maze, generator = env.unwrapped, np.random.default_rng(0)
    free = mazes.free_cells(maze.maze_map)
    for _ in range(200):
        position, goal = (
            np.array(maze.ij_to_xy(free[generator.integers(len(free))])) + generator.uniform(-1.5, 1.5, 2)
            for _ in range(2)
        )
        maze.set_xy(position)
        maze.set_goal(goal_xy=tuple(goal))
        way = maze.get_oracle_subgoal(position, goal)[0] - position
        np.testing.assert_allclose(mazes._direction(maze), way / (np.linalg.norm(way) + 1e-6), rtol=1e-12)


def test_navigate_starts_anywhere_and_goes_to_turning_cells(navigate):
    env, recipe = navigate
    maze = env.unwrapped
    drawn = [next(mazes.navigate(maze, np.random.default_rng(seed), recipe))["task_info"] for seed in range(600)]
    assert {task["init_ij"] for task in drawn} == set(mazes.free_cells(maze.maze_map))
    assert {task["goal_ij"] for task in drawn} == set(mazes.turning_cells(maze.maze_map))


def test_navigate_draws_a_new_goal_on_success_only(navigate):
    env, recipe = navigate
    maze = env.unwrapped
    moves = mazes.navigate(maze, np.random.default_rng(0), recipe)
    observation, info = env.reset(seed=0, options=next(moves))
    first = maze.cur_goal_xy
    moves.send((observation, info))
    moves.send((observation, {"success": 0.0}))
    assert maze.cur_goal_xy == first
    goals, offsets = set(), []
    for _ in range(400):
        moves.send((observation, {"success": 1.0}))
        cell = maze.xy_to_ij(maze.cur_goal_xy)
        goals.add(cell)
        offsets.append(np.subtract(maze.cur_goal_xy, maze.ij_to_xy(cell)))
        np.testing.assert_array_equal(maze.model.geom("target").pos[:2], maze.cur_goal_xy)
    assert goals == set(mazes.turning_cells(maze.maze_map))
    assert 0.95 < np.abs(offsets).max() <= 1.0  # the noise that OGBench adds to goals
    assert abs(np.std(offsets) - 3**-0.5) < 0.03


def test_stitch_goals_are_four_steps_away(stitch):
    env, recipe = stitch
    maze, seen = env.unwrapped, collections.defaultdict(set)
    for seed in range(1500):
        task = next(mazes.stitch(maze, np.random.default_rng(seed), recipe))["task_info"]
        seen[task["init_ij"]].add(task["goal_ij"])
    assert set(seen) == set(mazes.free_cells(maze.maze_map))
    for start, goals in seen.items():
        reach = distances(maze.maze_map, start)
        assert goals == {cell for cell, steps in reach.items() if steps == 4}


def test_stitch_keeps_its_goal_and_stays_where_no_cell_is_four_steps_away():
    env, recipe = make(STITCH)
    maze = env.unwrapped
    maze.maze_map = np.ones_like(maze.maze_map)
    maze.maze_map[1, 1:3] = 0
    moves = mazes.stitch(maze, np.random.default_rng(0), recipe)
    options = next(moves)
    assert options["task_info"]["init_ij"] == options["task_info"]["goal_ij"]
    sent = env.reset(seed=0, options=options)
    goal = maze.cur_goal_xy
    moves.send(sent)
    moves.send((sent[0], {"success": 1.0}))
    assert maze.cur_goal_xy == goal


def test_action_noise_is_half_a_unit_and_clipped(stitch):
    _, recipe = stitch
    generator = np.random.default_rng(0)
    direction = np.array([0.6, -0.8])
    actions = np.array([mazes._act(recipe, generator, np.zeros(2), direction) for _ in range(20_000)])
    assert np.abs(actions).max() == 1.0
    np.testing.assert_allclose(np.median(actions, axis=0), direction, atol=0.02)
    np.testing.assert_allclose(np.quantile(actions, 0.1587, axis=0)[0], 0.6 - 0.5, atol=0.03)
    np.testing.assert_allclose((np.abs(actions) == 1.0).mean(axis=0), [0.2126, 0.3447], atol=0.015)
