"""Monte-Carlo returns from each row to its episode's end: of datasets, and of episodes that are under way.

Two fields describe them: `returns`, G = r + γ m G', and `horizons`, H = 1 + γ m H', the discounted number of steps that
G sums; m is the mask, G' and H' are those of the next transition, and 0 after an episode's last one. The return of
rewards c·r + d is c·G + d·H, and that is what a normalised dataset or buffer holds; horizons are not kept.

An episode that did not terminate and whose rewards are all the same number, not above 0, is a sparse task that was not
solved, and would have gone on so for ever: G = r/(1 − γ) and H = 1/(1 − γ) in all of its rows, as in Cal-QL's code
(https://arxiv.org/abs/2303.05479, appendix D). Where data go on after a mask of 0, as OGBench's single tasks do, what
comes after it counts as an episode of its own.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flowrl.errors import UserError


def of_dataset(arrays: Mapping[str, np.ndarray], discount: float, penalty: float = 0.0) -> dict[str, np.ndarray]:
    """Returns `returns` and `horizons` float32 `[N]`, 0 in rows without a transition.

    Args:
        arrays: `rewards` and `masks` `[N]`, and `terminals` bool `[N]`, true on the last row of each episode, which has
            no transition.
        discount: γ < 1.
        penalty: Added to the reward of each termination.

    Raises:
        UserError: A return is not finite in 32 bits.
    """
    terminals = np.asarray(arrays["terminals"], bool)
    rewards, masks = np.asarray(arrays["rewards"], np.float64), np.asarray(arrays["masks"], np.float64)
    steps, rewards = np.where(terminals, 0.0, 1.0), rewards + penalty * (masks == 0)
    factors = discount * masks * steps  # 0 in an episode's last row, so that no sum crosses it
    unsolved = _unsolved(rewards, masks, terminals)
    found = {}
    for name, terms in (("returns", steps * rewards), ("horizons", steps)):
        with np.errstate(over="ignore"):  # which is refused
            found[name] = np.where(unsolved, terms / (1 - discount), _summed(terms, factors)).astype(np.float32)
        if not np.isfinite(found[name]).all():
            raise UserError(
                f"returns of rewards up to {np.abs(rewards).max():.3g} are not finite with a discount of {discount}; "
                "bring the rewards to a smaller scale"
            )
    return found


def _summed(terms: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns x with x = terms + factors · (x of the next row), all `[N]`."""
    total, found = 0.0, []
    for term, factor in zip(terms[::-1].tolist(), factors[::-1].tolist(), strict=True):
        total = term + factor * total
        found.append(total)
    return np.array(found[::-1])


def _unsolved(rewards: np.ndarray, masks: np.ndarray, terminals: np.ndarray) -> np.ndarray:
    """Returns whether each row `[N]` is of a sparse task's episode that was not solved, or not once more."""
    firsts = np.flatnonzero(np.concatenate([[True], (terminals | (masks == 0))[:-1]]))
    least = np.minimum.reduceat(np.where(terminals, np.inf, rewards), firsts)
    most = np.maximum.reduceat(np.where(terminals, -np.inf, rewards), firsts)
    endless = np.minimum.reduceat(np.where(terminals, 1.0, masks), firsts) == 1
    unsolved = (least == most) & (most <= 0) & endless
    return np.repeat(unsolved, np.diff(firsts, append=len(terminals)))


class Known(NamedTuple):
    """What has become known of R runs' transitions, at L places each.

    Attributes:
        places: Rows of the runs' buffers; the buffer's size, which is no row, where there is nothing; int32 `[R, L]`.
        returns: float32 `[R, L]`.
        horizons: float32 `[R, L]`.
    """

    places: np.ndarray
    returns: np.ndarray
    horizons: np.ndarray


class OpenEpisodes:
    """The episodes under way in R runs of E environments each, and where their transitions lie in the runs' buffers.

    A buffer of C rows receives the transitions of its run's E environments at each step, one after another, in a ring.
    """

    def __init__(self, runs: int, num_envs: int, capacity: int, discount: float):
        """Begins with episodes of no transition.

        Args:
            runs: R.
            num_envs: E.
            capacity: C.
            discount: γ < 1.
        """
        self._runs, self._num_envs, self._capacity, self._discount = runs, num_envs, capacity, discount
        self._rows: list[list[tuple[float, float]]] = [[] for _ in range(runs * num_envs)]

    def add(self, rewards: np.ndarray, masks: np.ndarray, ended: np.ndarray, stored: int) -> Known | None:
        """Notes one step of all environments; returns what is known now of the episodes that ended with it.

        Args:
            rewards: `[R·E]`.
            masks: `[R·E]`.
            ended: Whether the episode ended, for either reason, bool `[R·E]`.
            stored: Transitions that each run's buffer has received so far, those of this step among them.

        Returns:
            The transitions that are still in the buffers, or None where no episode ended. L is a power of two, so that
            programs for few sizes do for all.
        """
        for rows, reward, mask in zip(self._rows, rewards.tolist(), masks.tolist(), strict=True):
            rows.append((reward, mask))
        if not ended.any():
            return None
        found: list[list[np.ndarray]] = [[np.zeros((3, 0))] for _ in range(self._runs)]
        for i in np.flatnonzero(ended).tolist():
            found[i // self._num_envs].append(self._close(i, stored))
        runs = [np.concatenate(parts, axis=1) for parts in found]
        length = 1 << (max(part.shape[1] for part in runs) - 1).bit_length()
        padded = np.zeros((3, self._runs, max(length, 256)))
        padded[0] = self._capacity
        for run, part in enumerate(runs):
            padded[:, run, : part.shape[1]] = part
        return Known(padded[0].astype(np.int32), padded[1].astype(np.float32), padded[2].astype(np.float32))

    def _close(self, i: int, stored: int) -> np.ndarray:
        """Ends the episode of environment i; gives places, returns and horizons of its rows in the buffer `[3, T]`."""
        rows = np.array([*self._rows[i], (0.0, 0.0)])
        self._rows[i] = []
        terminals = np.arange(len(rows)) == len(rows) - 1
        sums = of_dataset({"rewards": rows[:, 0], "masks": rows[:, 1], "terminals": terminals}, self._discount)
        # The last transition of environment e was the run's number stored − E + e; each one before it, E earlier.
        age = self._num_envs * np.arange(len(rows) - 1, 0, -1) - i % self._num_envs
        kept = age <= self._capacity
        places = (stored - age) % self._capacity
        return np.stack([places, sums["returns"][:-1], sums["horizons"][:-1]])[:, kept]
