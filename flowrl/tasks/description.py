"""What a dataset consists of, in a few lines for people, and what about it is implausible."""

import numpy as np

from flowrl.normalize import episode_returns
from flowrl.tasks.columns import BLOCK, extent
from flowrl.tasks.fields import ACTION_LIMIT, Arrays, Reading

_HUGE = 1e6  # beyond which a 32-bit float resolves less than a tenth
_NARROW = 0.5  # of the bounds
_NAMED = 6  # columns that a line names


def facts(reading: Reading) -> list[str]:
    """Returns lines on rows, episodes, returns, ranges, and fields that were not read."""
    arrays = reading.arrays
    lengths = episode_lengths(arrays["terminals"])
    shortest, median, longest = int(lengths.min()), float(np.median(lengths)), int(lengths.max())
    steps = f"of {shortest:,} to {longest:,} steps, {median:,.10g} in the median"
    steps = f"of {longest:,} steps each" if shortest == longest else steps
    many = f"{len(lengths):,} episodes" if len(lengths) > 1 else "1 episode"
    lines = [f"{reading.rows:,} rows: {lengths.sum():,} transitions in {many} {steps}"]
    if "rewards" in arrays:
        returns = episode_returns(arrays["rewards"], arrays["terminals"])
        lines.append(f"returns {returns.min():.4g} to {returns.max():.4g}, {returns.mean():.4g} in the mean")
    inside = ~arrays["terminals"]
    actions = inner_extent(arrays["actions"], inside)
    share = bound_share(arrays["actions"], inside)
    at_bounds = f", {share:.0%} of them at a bound" if share >= 0.005 else ""
    observations = extent(arrays["observations"])
    sizes = f"observations of {arrays['observations'].shape[1]:,} numbers in {_span(observations)}"
    lines.append(f"{sizes}; actions of {len(actions[0]):,} in {_span(actions)}{at_bounds}")
    if reading.unread:
        more = f" and {len(reading.unread) - 12} more" if len(reading.unread) > 12 else ""
        lines.append(f"not read: {', '.join(reading.unread[:12])}{more}")
    return lines


def doubts(arrays: Arrays, *, limit: int | None = None, bounds: bool = False) -> list[str]:
    """Returns what is implausible about a dataset, one line each.

    Args:
        arrays: In the layout that `flowrl.tasks.transitions` describes, `rewards` and `masks` where it has them.
        limit: Steps after which the environment ends an episode, where known.
        bounds: Whether the actions were brought to [-1, 1] by the environment's bounds.
    """
    inside = ~arrays["terminals"]
    lengths = episode_lengths(arrays["terminals"])
    if lengths.sum() == 1:
        return _of_lengths(lengths, limit)
    return [
        *_of_lengths(lengths, limit),
        *_of_observations(extent(arrays["observations"])),
        *_of_actions(arrays["actions"], inside, bounds),
        *(_of_rewards(arrays, inside) if "rewards" in arrays else ()),
    ]


def small(arrays: Arrays, batch_size: int) -> list[str]:
    """Returns a line where there are fewer transitions than a batch has."""
    transitions = int(np.count_nonzero(~arrays["terminals"]))
    if transitions >= batch_size:
        return []
    return [f"a batch of {batch_size:,} is larger than the set of {transitions:,} transitions, and repeats them"]


def episode_lengths(terminals: np.ndarray) -> np.ndarray:
    """Returns the number of transitions of each episode, int `[E]`."""
    return np.diff(np.flatnonzero(terminals), prepend=-1) - 1


def inner_extent(array: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Returns the least and the largest number of each column of `[N, C]` in the rows `inside` `[N]`, as `[2, C]`."""
    parts = [extent(part) for block in _blocks(len(array)) if len(part := array[block][inside[block]])]
    return np.stack([np.min(parts, axis=0)[0], np.max(parts, axis=0)[1]])


def bound_share(actions: np.ndarray, inside: np.ndarray) -> float:
    """Returns the share of the numbers of actions `[N, A]` in the rows `inside` `[N]` that lie at ±1."""
    least = np.float32(ACTION_LIMIT)
    count = sum(np.count_nonzero(np.abs(actions[block][inside[block]]) >= least) for block in _blocks(len(actions)))
    return count / max(1, int(np.count_nonzero(inside)) * actions.shape[1])


def _blocks(rows: int) -> list[slice]:
    return [slice(first, first + BLOCK) for first in range(0, rows, BLOCK)]


def _of_lengths(lengths: np.ndarray, limit: int | None) -> list[str]:
    found, steps = [], int(lengths.sum())
    if steps <= 5:
        found.append(f"there {'is' if steps == 1 else 'are'} only {steps} transition{'s' * (steps > 1)}")
    elif 2 * np.count_nonzero(lengths == 1) > steps:
        found.append(f"{np.count_nonzero(lengths == 1):,} of {len(lengths):,} episodes have a single step")
    if limit is not None and lengths.max() > limit:
        over = np.count_nonzero(lengths > limit)
        found.append(
            f"{over:,} of {len(lengths):,} episodes are longer than the environment's limit of {limit:,} steps: are "
            "all ends marked?"
        )
    return found


def _of_observations(ranges: np.ndarray) -> list[str]:
    found = []
    constant = np.flatnonzero(ranges[0] == ranges[1])
    if len(constant) == len(ranges[0]):
        found.append("all observations are the same")
    elif len(constant):
        found.append(f"observations never change in {_columns(constant)}")
    sizes = np.abs(ranges).max(axis=0)
    if sizes.max() >= _HUGE:
        huge = np.flatnonzero(sizes >= _HUGE)
        found.append(f"observations reach {sizes.max():.3g}, in {_columns(huge)}: bring them to a smaller scale")
    return found


def _of_actions(actions: np.ndarray, inside: np.ndarray, bounds: bool) -> list[str]:
    low, high = inner_extent(actions, inside)
    constant = low == high
    if constant.all():
        what = "0" if not low.any() else "the same"
        return [f"all actions are {what}"]
    found = []
    if constant.any():
        found.append(f"actions never change in {_columns(np.flatnonzero(constant))}")
    filled = (high - low) / 2
    narrow = ~constant & (filled <= _NARROW + 1e-3)
    if narrow.any() and (bounds or narrow[~constant].all()):
        found.append(
            f"actions fill {filled[narrow].max():.0%} of the bounds or less in {_columns(np.flatnonzero(narrow))}: are "
            "they in other units than the environment's?"
        )
    if (share := bound_share(actions, inside)) > 0.9:
        found.append(f"{share:.0%} of the numbers of actions lie at a bound: were they clipped?")
    return found


def _of_rewards(arrays: Arrays, inside: np.ndarray) -> list[str]:
    rewards, found = arrays["rewards"][inside], []
    if rewards.min() == rewards.max():
        found.append(f"all rewards are {rewards[0]:g}")
    if (size := float(np.abs(rewards).max())) >= _HUGE:
        found.append(f"rewards reach {size:.3g}: give a smaller --normalize.reward_scale")
    if not arrays["masks"][inside].any():
        found.append("every transition ends its episode for good, so that nothing after it counts")
    return found


def _columns(indices: np.ndarray) -> str:
    """Names columns, the first of them where they are many."""
    if len(indices) == 1:
        return f"column {indices[0]}"
    named = ", ".join(str(index) for index in indices[:_NAMED])
    return f"columns {named}" + (f" and {len(indices) - _NAMED} more" if len(indices) > _NAMED else "")


def _span(ranges: np.ndarray) -> str:
    low, high = float(ranges[0].min()), float(ranges[1].max())
    return f"[{low:.4g}, {high:.4g}]"
