"""How trials of a diffusion classifier become an answer, and when there have been enough of them. Light: no torch.

A trial draws one noise level and one noise, and gives the squared error of every condition under them; smaller is
better. A contest is a set of conditions that exclude each other: all classes of one-of-K, or absence and presence of
one finding. Errors are (n, N, C): images, trials, conditions; NaN where no error was computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

Kind = Literal["one_of_k", "multi_label"]
Contests = Sequence[Sequence[int]]
Rule = Literal["majority", "mean"]

# The bet of a duel, by the fewest trials on simulated votes of .52 to 1 for the winner, at 1/20 and at 1/900.
PRIOR_SHARE, PRIOR_TRIALS, LEAST_EDGE = 0.8, 5.0, 0.25
LIFT = 1e-6  # what breaks a tie: less than a vote of 100,000, and still there in float32
MAX_CELLS = 8_000_000  # errors looked at at once: more images are taken in chunks


class MissingErrors(ValueError):  # noqa: N818
    """An error is needed that was not computed."""


# --- Rules on complete errors -----------------------------------------------------------------------------------------


def majority(errors: np.ndarray) -> np.ndarray:
    """Return the share of trials that each condition of one contest wins: (n, N, C) -> (n, C).

    Equal errors share their vote. Of conditions with equally many votes, that of the smaller mean error is lifted by
    1e-6, which overturns no vote (Favero et al. 2025, arXiv 2502.03687).
    """
    shares = _votes(errors).mean(1)
    return _lifted(shares, _best(shares, errors))


def mean(errors: np.ndarray) -> np.ndarray:
    """Return the posterior of the conditions of one contest under equal priors: (n, N, C) -> (n, C).

    The softmax of minus the mean squared error, summed over pixels (Li et al. 2023, arXiv 2303.16203), which is halved
    here: the logarithm of a Gaussian's density counts a squared error half.
    """
    logits = _means(errors) / -2
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


RULES: dict[Rule, Callable[[np.ndarray], np.ndarray]] = {"majority": majority, "mean": mean}


def _means(errors: np.ndarray) -> np.ndarray:
    """Return mean errors over trials (n, C); an overflow is the largest number, so that some condition is best."""
    return np.minimum(errors.mean(1, dtype=np.float64), np.finfo(np.float64).max / 2)


def _votes(errors: np.ndarray) -> np.ndarray:
    """Return which condition wins each trial, (n, N, C) in [0, 1]; only those with an error take part."""
    known = ~np.isnan(errors)
    errors = np.where(known, errors, np.inf)
    best = known & (errors == errors.min(2, keepdims=True))
    return best / np.maximum(best.sum(2, keepdims=True), 1)


def _best(shares: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Return the condition of the largest share (n,), ties going to the smaller mean error."""
    leads = shares >= shares.max(1, keepdims=True) - LIFT / 2  # sums of split votes are not exact
    return np.where(leads, _means(errors), np.inf).argmin(1)


def _lifted(shares: np.ndarray, winner: np.ndarray) -> np.ndarray:
    """Give the winner what it lacks to be the only largest share, and scale so that the sum is 1 again."""
    won = winner[:, None] == np.arange(shares.shape[1])
    rival = np.where(won, -np.inf, shares).max(1, keepdims=True)
    lift = np.where(won, np.maximum(rival + LIFT - shares, 0), 0)
    return (shares + lift) / (shares + lift).sum(1, keepdims=True)


# --- Race -------------------------------------------------------------------------------------------------------------


class Race:
    """A sequential decision of one contest for n images: conditions that have surely lost are asked no more.

    An image's trials are a finite population in random order, and a duel of conditions a and b is a ballot on it: a
    trial is 1 where a has the smaller error, 0 where b has, 1/2 on a tie. H(a, b), "a does not win more than half of
    all trials", is tested by ALPHA without replacement (Stark 2023, arXiv 2201.02707). It is rejected where a's lead
    cannot be overtaken, or the martingale reaches (C - 1) / error; that eliminates b. With error 0 only the former
    counts.

    If w beats every other condition over all trials (Condorcet winner), P(winner != w) <= error:
    w loses only if some H(a, w) is rejected, since what is left at the end without w has eliminated it.
    Each of these C - 1 hypotheses is true, and under it the martingale starts at 1 and is never negative.
    By Ville's inequality it ever reaches (C - 1) / error with probability at most error / (C - 1); they sum to error.

    Of two conditions w is the one with the majority. Of more, it need not be the one with most votes; and where nobody
    beats all others, the order of trials has a say in who is left.

    Args:
        images: n.
        conditions: C.
        trials: N, the whole population, after which every image is decided.
        error: chance in [0, 1) of another winner.
    """

    active: np.ndarray  # (n, C) bool: whose errors the next block needs; nobody's where the image is decided
    errors: np.ndarray  # (n, N, C) float32: all that was recorded, NaN elsewhere
    trials_used: np.ndarray  # (n,) trials in which the image took part
    calls: np.ndarray  # (n,) errors computed

    def __init__(self, images: int, conditions: int, *, trials: int, error: float) -> None:
        if conditions < 2 or trials < 1 or not 0 <= error < 1:
            raise ValueError(
                f"a race needs two conditions, a trial, and an error in [0, 1), not {conditions}, {trials}, {error}"
            )
        self.trials = trials
        self._limit = math.log((conditions - 1) / error) if error else math.inf
        self.active = np.ones((images, conditions), dtype=bool)
        self.errors = np.full((images, trials, conditions), np.nan, dtype=np.float32)
        self.trials_used = np.zeros(images, dtype=np.int64)
        self.calls = np.zeros(images, dtype=np.int64)
        self._done = 0
        self._left = self.active.copy()  # not eliminated, (n, C)
        # Of every ordered pair (n, C, C): trials won by the first, and the logarithm of the martingale.
        self._wins = np.zeros((images, conditions, conditions))
        self._wealth = np.zeros((images, conditions, conditions))

    def record(self, errors: np.ndarray) -> None:
        """Take the next block of trials, (n, T, C); what is not active is ignored.

        Raises:
            MissingErrors: an active condition has no error.
            ValueError: the shape is another one, or the trials are more than are left.
        """
        images, conditions = self.active.shape
        block = np.asarray(errors, dtype=np.float32)  # as stored, so that a replay compares the same numbers
        if block.ndim != 3 or block.shape[::2] != (images, conditions) or self._done + block.shape[1] > self.trials:
            raise ValueError(
                f"a block of shape {block.shape} does not fit a race of {images} images and {conditions} conditions"
                f" with {self.trials - self._done} trials left"
            )
        block = np.where(self.active[:, None], block, np.float32(np.nan))
        if (np.isnan(block) & self.active[:, None]).any():
            raise MissingErrors(
                "the error of a condition that is still in the race is NaN: the network's output is, or the errors"
                " were recorded by a race that stopped earlier"
            )
        length = block.shape[1]
        self.errors[:, self._done : self._done + length] = block
        self.trials_used += self.active.any(1) * length
        self.calls += self.active.sum(1) * length

        image, a, b = np.nonzero(self.active[:, :, None] & self.active[:, None] & ~np.eye(conditions, dtype=bool))
        sure = self._duel(block[image, :, a], block[image, :, b], (image, a, b))
        beaten = np.zeros_like(self.active)
        beaten[image[sure], b[sure]] = True
        self._done += length
        left = self._left & ~beaten
        self._left = np.where(left.any(1, keepdims=True), left, self._left)  # a circle eliminates nobody
        undecided = (self._left.sum(1) > 1) & (self._done < self.trials)
        self.active = self._left & undecided[:, None]

    def _duel(self, ours: np.ndarray, theirs: np.ndarray, pair: tuple[np.ndarray, ...]) -> np.ndarray:
        """Move the duels of pairs on by errors (pairs, T) and return which are won for sure (pairs,)."""
        wins, wealth = self._wins[pair], self._wealth[pair]
        sure = np.zeros(len(wins), dtype=bool)
        won = np.where(ours == theirs, 0.5, ours < theirs)
        for j, x in enumerate(won.T, start=self._done + 1):
            null = (self.trials / 2 - wins) / (self.trials - j + 1)  # mean of what is to come, if half are won in all
            # At 0 only a win is news, which is certain then; from 1 on H is true. Neither is worth a bet.
            null = np.where((null > 0) & (null < 1), null, np.nan)
            weight = PRIOR_TRIALS + j - 1
            bet = (PRIOR_TRIALS * PRIOR_SHARE + wins) / weight
            bet = np.clip(bet, null + LEAST_EDGE / math.sqrt(weight), np.maximum(0.999, (1 + null) / 2))
            # x bet / null + (1 - x) (1 - bet) / (1 - null), the factor of ALPHA, written as 1 + what is won.
            wealth += np.nan_to_num(np.log1p((x - null) * (bet - null) / (null * (1 - null))))
            wins += x
            sure |= (wealth >= self._limit) | (wins > self.trials / 2)
        self._wins[pair], self._wealth[pair] = wins, wealth
        return sure

    @property
    def winner(self) -> np.ndarray:
        """Return the winning condition (n,): the last one, or that of most votes among those never eliminated."""
        winner = self._left.argmax(1)
        open_ = np.flatnonzero(self._left.sum(1) > 1)
        if len(open_) and self._done:
            errors = np.where(self._left[open_, None], self.errors[open_, : self._done], np.inf)
            winner[open_] = _best(_votes(errors).mean(1), errors)
        return winner

    @property
    def probabilities(self) -> np.ndarray:
        """Return the share of the trials used that each condition won among those then active, (n, C).

        Where another than the winner has most votes, the winner is lifted just above it. Shares of a race that stopped
        early lean to the winner.
        """
        shares = _votes(self.errors[:, : self._done]).sum(1) / np.maximum(self.trials_used, 1)[:, None]
        return _lifted(shares, self.winner)


# --- Answers ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """What a rule makes of recorded errors."""

    probabilities: np.ndarray  # (n, K): of each class, or of each finding's presence
    winners: np.ndarray  # (n, contests): position of the winner in its contest; 1 is presence
    calls: np.ndarray  # (n,) network calls
    trials_used: np.ndarray  # (n,) until the last contest was decided


def outcome(contests: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
    """Join the probabilities of contests, each (n, C), to those of classes or of findings' presence, (n, K)."""
    return contests[0] if kind == "one_of_k" else np.stack([contest[:, 1] for contest in contests], axis=1)


def fixed(errors: np.ndarray, contests: Contests, *, kind: Kind, rule: Rule, trials: int) -> Replay:
    """Apply ``majority`` or ``mean`` to the first ``trials`` errors (n, N, C).

    Raises:
        MissingErrors: one of them is NaN.
        ValueError: there are fewer trials.
    """
    _check(errors, contests, trials)
    if np.isnan(errors[:, :trials]).any():
        raise MissingErrors(
            f"the rule {rule!r} needs all errors, and some are NaN: record them with voting.stop: false"
        )

    def decide(part: np.ndarray) -> Replay:
        each = [RULES[rule](part[:, :, list(contest)]) for contest in contests]
        used = np.full(len(part), trials)
        return Replay(
            outcome(each, kind), np.stack([p.argmax(1) for p in each], axis=1), used * sum(map(len, contests)), used
        )

    return _in_chunks(decide, errors[:, :trials])


def replay(errors: np.ndarray, contests: Contests, *, kind: Kind, trials: int, error: float, block: int) -> Replay:
    """Run a race over the first ``trials`` recorded errors (n, N, C) in blocks, with the answers of the race itself.

    Raises:
        MissingErrors: the race asks for an error that was not recorded.
        ValueError: there are fewer trials, or a setting is out of range.
    """
    _check(errors, contests, trials)
    if block < 1:
        raise ValueError(f"a block has at least one trial, not {block}")

    def decide(part: np.ndarray) -> Replay:
        races = [Race(len(part), len(contest), trials=trials, error=error) for contest in contests]
        for race, contest in zip(races, contests, strict=True):
            for start in range(0, trials, block):
                if not race.active.any():
                    break
                race.record(part[:, start : start + block, list(contest)])
        return Replay(
            outcome([race.probabilities for race in races], kind),
            np.stack([race.winner for race in races], axis=1),
            np.sum([race.calls for race in races], axis=0),
            np.max([race.trials_used for race in races], axis=0),
        )

    return _in_chunks(decide, errors[:, :trials])


def _check(errors: np.ndarray, contests: Contests, trials: int) -> None:
    """Refuse errors that do not have the conditions or the trials."""
    conditions = sum(map(len, contests))
    if errors.ndim != 3 or errors.shape[2] != conditions or not 1 <= trials <= errors.shape[1]:
        raise ValueError(f"errors of shape {errors.shape} do not hold {trials} trials of {conditions} conditions")


def _in_chunks(decide: Callable[[np.ndarray], Replay], errors: np.ndarray) -> Replay:
    """Decide some images at a time, since a rule needs several times the memory of its errors."""
    size = max(1, MAX_CELLS // math.prod(errors.shape[1:]))
    parts = [decide(errors[start : start + size]) for start in range(0, max(len(errors), 1), size)]
    return Replay(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Replay)))


def entropy(probabilities: np.ndarray, *, kind: Kind) -> np.ndarray:
    """Return how divided the votes are, (n, K) -> (n,), from 0 (unanimous) to 1 (even).

    The entropy of the classes over log K, or the mean over findings of that of absence and presence over log 2.
    """
    if kind == "multi_label":
        pairs = np.stack([1 - probabilities, probabilities], axis=2)
        return np.mean([entropy(pair, kind="one_of_k") for pair in pairs.swapaxes(0, 1)], axis=0)
    logs = np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)
    return np.clip(-(probabilities * logs).sum(1) / math.log(probabilities.shape[1]), 0, 1)
