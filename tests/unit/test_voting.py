"""Votes and races against brute force, closed forms and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jointdiff.evaluate.voting import (
    LEAST_EDGE,
    PRIOR_SHARE,
    PRIOR_TRIALS,
    MissingErrors,
    Race,
    entropy,
    fixed,
    majority,
    mean,
    outcome,
    replay,
)
from tests.properties import examples

PAIR = ((0, 1),)


def one(conditions):
    """Return the contest of one-of-K."""
    return (tuple(range(conditions)),)


def ballots(won, conditions, rng):
    """Return errors (n, N, C) in which condition won[i, j] is the best in trial j."""
    errors = rng.random((*won.shape, conditions)) + 1
    np.put_along_axis(errors, won[..., None], rng.random((*won.shape, 1)), axis=2)
    return errors.astype(np.float32)


def electorate(counts, images, rng):
    """Return errors in which condition c is the best in counts[c] trials, in an order of each image's own."""
    won = np.tile(np.repeat(np.arange(len(counts)), counts), (images, 1))
    return ballots(rng.permuted(won, axis=1), len(counts), rng)


def duels(counts, images, rng):
    """Return errors of a fixed finite set of trials of random rankings, in an order of each image's own."""
    rows = np.concatenate(
        [np.tile(np.argsort(ranking), (count, 1)) for ranking, count in counts.items()]
    )  # error of each condition is its place
    order = rng.permuted(np.tile(np.arange(len(rows)), (images, 1)), axis=1)
    return rows[order].astype(np.float32)


def race_by_hand(errors, *, trials, error, block):
    """Feed a race from outside, showing it nothing that it does not ask for."""
    race = Race(len(errors), errors.shape[2], trials=trials, error=error)
    for start in range(0, trials, block):
        if not race.active.any():
            break
        shown = errors[:, start : min(start + block, trials)].copy()
        shown[~np.broadcast_to(race.active[:, None], shown.shape)] = np.nan
        race.record(shown)
    return race


@st.composite
def small_errors(draw, conditions=None, least=2):
    """Errors with many ties."""
    images, trials = draw(st.integers(1, 4)), draw(st.integers(1, 14))
    conditions = conditions or draw(st.integers(least, 5))
    values = draw(st.integers(2, 6))
    return (
        np.random.default_rng(draw(st.integers(0, 10_000)))
        .integers(0, values, (images, trials, conditions))
        .astype(np.float32)
    )


# --- Rules ------------------------------------------------------------------------------------------------------------


@examples(200)
@given(small_errors())
def test_majority_equals_a_count_by_hand(errors):
    for image, answer in zip(errors, majority(errors), strict=True):
        votes = np.zeros(errors.shape[2])
        for trial in image:
            best = np.flatnonzero(trial == trial.min())
            votes[best] += 1 / len(best)
        np.testing.assert_allclose(answer, votes / len(image), atol=2e-6)
        tied = np.flatnonzero(votes > votes.max() - 1e-9)
        assert answer.argmax() == tied[image.mean(0)[tied].argmin()]
        assert answer.sum() == pytest.approx(1, abs=1e-12) and (answer >= 0).all()


@examples(100)
@given(small_errors())
def test_mean_is_the_posterior_of_the_evidence_bound(errors):
    for image, answer in zip(errors, mean(errors), strict=True):
        odds = [math.exp(-sum(map(float, column)) / len(column) / 2) for column in image.T]
        np.testing.assert_allclose(answer, np.array(odds) / sum(odds), rtol=1e-12)


def test_rules_in_small_cases():
    errors = np.array([[[1, 2, 3], [1, 9, 9], [8, 2, 3], [8, 2, 1]]], dtype=np.float32)
    np.testing.assert_allclose(majority(errors), [[0.5, 0.25, 0.25]])
    np.testing.assert_allclose(mean(errors)[0], np.exp([-4.5 / 2, -3.75 / 2, -4 / 2]) / 0.394089, rtol=1e-4)
    # Two votes each, and the second has the smaller mean error: a lift that float32 keeps but no vote feels.
    tie = np.array([[[1, 2], [1, 2], [9, 1], [9, 1]]], dtype=np.float32)
    p = majority(tie).astype(np.float32)[0]
    assert p[1] > p[0] > 0.5 - 1e-6
    np.testing.assert_array_equal(majority(np.ones((1, 3, 4), np.float32)).argmax(1), [0])
    # The first `trials` are what counts, and a finding's probability is that of its presence.
    answer = fixed(tie, PAIR, kind="multi_label", rule="majority", trials=2)
    assert answer.probabilities.tolist() == [[0.0]] and answer.winners.tolist() == [[0]]
    assert answer.calls.tolist() == [4] and answer.trials_used.tolist() == [2]
    assert fixed(tie, PAIR, kind="one_of_k", rule="majority", trials=2).probabilities.tolist() == [[1.0, 0.0]]


def test_an_overflow_loses_and_is_no_nan():
    errors = np.array([[[np.inf, 1.0], [np.inf, 2.0]]], dtype=np.float32)
    for rule in (majority, mean):
        np.testing.assert_array_equal(rule(errors), [[0, 1]])
    assert np.isfinite(mean(np.full((1, 2, 3), np.inf))).all()


def test_findings_are_decided_one_by_one():
    rng = np.random.default_rng(0)
    errors = rng.random((30, 25, 6)).astype(np.float32)
    contests = ((0, 1), (2, 3), (4, 5))
    for answer in (
        fixed(errors, contests, kind="multi_label", rule="majority", trials=25),
        replay(errors, contests, kind="multi_label", trials=25, error=0.2, block=4),
    ):
        assert answer.probabilities.shape == answer.winners.shape == (30, 3)
        np.testing.assert_array_equal(answer.probabilities > 0.5, answer.winners == 1)
    pairs = [replay(errors[:, :, list(c)], PAIR, kind="multi_label", trials=25, error=0.2, block=4) for c in contests]
    np.testing.assert_array_equal(answer.calls, sum(pair.calls for pair in pairs))
    np.testing.assert_array_equal(answer.trials_used, np.max([pair.trials_used for pair in pairs], axis=0))
    np.testing.assert_array_equal(answer.probabilities, np.concatenate([p.probabilities for p in pairs], axis=1))


def test_entropy_runs_from_agreement_to_an_even_split():
    classes = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])
    np.testing.assert_allclose(entropy(classes, kind="one_of_k"), [0, 1, math.log(2, 3)], atol=1e-12)
    findings = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.5]])
    np.testing.assert_allclose(entropy(findings, kind="multi_label"), [0, 1, 0.5], atol=1e-12)


# --- The martingale ---------------------------------------------------------------------------------------------------


def martingale(votes, trials):
    """Return ALPHA's T_j in plain numbers (Stark 2023), for as long as 0 < mu_j < 1."""
    total, value, values = 0.0, 1.0, []
    for j, x in enumerate(votes, start=1):
        mu = (trials / 2 - total) / (trials - j + 1)
        if not 0 < mu < 1:
            break
        share = (PRIOR_TRIALS * PRIOR_SHARE + total) / (PRIOR_TRIALS + j - 1)
        eta = max(share, mu + LEAST_EDGE / math.sqrt(PRIOR_TRIALS + j - 1))
        eta = min(eta, max(0.999, (1 + mu) / 2))
        assert mu < eta < 1
        value *= x * eta / mu + (1 - x) * (1 - eta) / (1 - mu)
        total += x
        values.append(value)
    return values


@pytest.mark.parametrize(("trials", "error"), [(501, 0.01), (501, 0.2), (101, 0.001), (21, 0.05)])
def test_an_unopposed_condition_wins_after_the_trials_computed_by_hand(trials, error):
    errors = np.tile(np.float32([0, 1]), (1, trials, 1))
    expected = next(j for j, t in enumerate(martingale([1] * trials, trials), start=1) if t >= 1 / error)
    race = race_by_hand(errors, trials=trials, error=error, block=1)
    assert (race.winner[0], race.trials_used[0], race.calls[0]) == (0, expected, 2 * expected)


def test_the_first_bets_are_those_of_the_paper():
    # eta_1 = 0.8 against 1/2 gives 1.6; then (4 + 1) / 6 against (5 - 1) / 9.
    assert martingale([1, 1], 10) == pytest.approx([1.6, 1.6 * (5 / 6) / (4 / 9)])
    assert martingale([1, 1], 10)[1] == pytest.approx(3.0)
    errors = np.tile(np.float32([0, 1]), (1, 10, 1))
    for error, used in ((0.7, 1), (0.334, 2), (0.332, 3)):
        assert race_by_hand(errors, trials=10, error=error, block=1).trials_used[0] == used


@examples(100)
@given(st.integers(0, 10_000), st.integers(2, 60), st.sampled_from([0.49, 0.11, 0.013]))
def test_a_duel_stops_where_the_martingale_of_either_side_says(seed, trials, error):
    rng = np.random.default_rng(seed)
    votes = rng.choice([0, 0.5, 1], trials, p=[0.2, 0.2, 0.6])
    errors = np.stack([1 - votes, votes], axis=1)[None].astype(np.float32)
    race = race_by_hand(errors, trials=trials, error=error, block=1)
    stops = [trials]
    for side in (votes, 1 - votes):
        stops += [j for j, t in enumerate(martingale(side, trials), start=1) if t >= 1 / error][:1]
        stops += [j for j in range(1, trials + 1) if side[:j].sum() > trials / 2][:1]
    assert race.trials_used[0] == min(stops)


# --- The guarantee ----------------------------------------------------------------------------------------------------


def most(images, error):
    """Return the most mistakes that chance allows at this rate (5 standard deviations)."""
    return images * error + 5 * math.sqrt(images * error)


@pytest.mark.parametrize("error", [0.2, 0.05])
@pytest.mark.parametrize(("ours", "theirs"), [(50, 50), (51, 50), (53, 48), (25, 26)])
def test_a_duel_of_narrow_or_no_margin_is_rarely_lost(ours, theirs, error):
    rng = np.random.default_rng(ours)
    images = 4000
    race = race_by_hand(electorate((ours, theirs), images, rng), trials=ours + theirs, error=error, block=1)
    if ours == theirs:  # neither beats the other: each of the two false claims has its own chance
        early = race.trials_used < ours + theirs
        for winner in (0, 1):
            assert (early & (race.winner == winner)).sum() <= most(images, error)
    else:
        assert (race.winner != np.argmax([ours, theirs])).sum() <= most(images, error)


def test_the_chance_is_used_and_not_given_away():
    races = race_by_hand(electorate((51, 50), 4000, np.random.default_rng(0)), trials=101, error=0.3, block=1)
    assert (races.winner != 0).mean() > 0.05


@pytest.mark.parametrize("conditions", [5, 10])
@pytest.mark.parametrize("error", [0.3, 0.05])
def test_the_condorcet_winner_is_rarely_eliminated(conditions, error):
    # 0 wins every duel 51 to 50, though in half of the trials all others are better: the hardest case there is.
    rng, others = np.random.default_rng(conditions), list(range(1, conditions))
    errors = duels({(0, *others): 51, (*others, 0): 25, (*others[::-1], 0): 25}, 1500, rng)
    race = race_by_hand(errors, trials=101, error=error, block=4)
    assert (race.winner != 0).sum() <= most(1500, error)


@examples(200)
@given(small_errors(conditions=2), st.integers(1, 5))
def test_without_an_error_two_conditions_get_the_answer_of_all_trials(errors, block):
    trials = errors.shape[1]
    race = replay(errors, PAIR, kind="one_of_k", trials=trials, error=0.0, block=block)
    full = fixed(errors, PAIR, kind="one_of_k", rule="majority", trials=trials)
    np.testing.assert_array_equal(race.winners, full.winners)
    assert (race.calls <= full.calls).all()


@examples(200)
@given(small_errors(), st.integers(1, 5))
def test_without_an_error_a_condorcet_winner_wins(errors, block):
    trials = errors.shape[1]
    race = replay(errors, one(errors.shape[2]), kind="one_of_k", trials=trials, error=0.0, block=block)
    for image, winner in zip(errors, race.winners[:, 0], strict=True):
        a, b = image[:, :, None], image[:, None]
        wins = ((a < b) + (a == b) / 2).sum(0) > trials / 2
        best = [c for c in range(errors.shape[2]) if np.delete(wins[c], c).all()]
        assert not best or winner == best[0]


def test_a_circle_is_decided_by_votes_and_then_by_errors():
    # a beats b beats c beats a, five to four each; a has four firsts, b three, c two.
    circle = {(0, 1, 2): 3, (1, 2, 0): 3, (2, 0, 1): 2, (0, 2, 1): 1}
    errors = duels(circle, 20, np.random.default_rng(0))
    race = race_by_hand(errors, trials=9, error=0.0, block=9)
    assert (race.winner == 0).all() and (race.trials_used == 9).all() and not race.active.any()
    np.testing.assert_allclose(race.probabilities, np.tile([4 / 9, 3 / 9, 2 / 9], (20, 1)))
    # In smaller blocks whoever is sure first breaks the circle.
    assert not race_by_hand(errors, trials=9, error=0.0, block=2).active.any()
    tied = duels({(0, 1, 2): 1, (1, 2, 0): 1, (2, 0, 1): 1}, 20, np.random.default_rng(0))
    tied[:, :, 1] -= 0.5 * (tied[:, :, 1] == 2)
    assert (race_by_hand(tied, trials=3, error=0.0, block=3).winner == 1).all()


# --- The race as a whole ----------------------------------------------------------------------------------------------


@examples(100)
@given(small_errors(), st.integers(1, 6), st.sampled_from([0.0, 0.05, 0.5, 0.9]))
def test_a_replay_equals_the_race_that_only_sees_what_it_asks_for(errors, block, error):
    trials, conditions = errors.shape[1:]
    race = race_by_hand(errors, trials=trials, error=error, block=block)
    same = {"kind": "one_of_k", "trials": trials, "error": error, "block": block}
    for recorded in (errors, race.errors):  # the second holds NaN where the race did not ask
        answer = replay(recorded, one(conditions), **same)
        np.testing.assert_array_equal(answer.probabilities, race.probabilities)
        np.testing.assert_array_equal(answer.winners[:, 0], race.winner)
        np.testing.assert_array_equal(answer.calls, race.calls)
        np.testing.assert_array_equal(answer.trials_used, race.trials_used)
    np.testing.assert_array_equal(race.calls, (~np.isnan(race.errors)).sum((1, 2)))
    assert (race.calls <= trials * conditions).all()
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(answer.probabilities.argmax(1), race.winner)
    assert (answer.probabilities >= 0).all()


def test_an_image_is_decided_as_if_it_were_alone():
    errors = electorate((30, 15, 6), 40, np.random.default_rng(0))
    together = race_by_hand(errors, trials=51, error=0.05, block=4)
    for i in range(0, 40, 7):
        alone = race_by_hand(errors[i : i + 1], trials=51, error=0.05, block=4)
        assert (alone.winner[0], alone.calls[0]) == (together.winner[i], together.calls[i])
        np.testing.assert_array_equal(alone.probabilities[0], together.probabilities[i])


def test_chunks_of_images_change_nothing(monkeypatch):
    errors = electorate((30, 15, 6), 20, np.random.default_rng(0))
    same = {"kind": "one_of_k", "trials": 51, "error": 0.05, "block": 4}
    whole = replay(errors, one(3), **same)
    monkeypatch.setattr("jointdiff.evaluate.voting.MAX_CELLS", 500)
    parts = replay(errors, one(3), **same)
    np.testing.assert_array_equal(whole.probabilities, parts.probabilities)
    np.testing.assert_array_equal(whole.calls, parts.calls)
    assert replay(errors[:0], one(3), **same).probabilities.shape == (0, 3)


def test_a_clear_case_costs_an_eighth_at_most():
    rng = np.random.default_rng(0)
    errors = electorate((451, 6, 6, 6, 6, 6, 5, 5, 5, 5), 100, rng)
    answer = replay(errors, one(10), kind="one_of_k", trials=501, error=0.01, block=8)
    assert (answer.winners == 0).all()
    assert answer.calls.mean() * 8 <= 501 * 10


def test_a_race_asks_less_and_less_and_counts_what_it_asked():
    errors = electorate((60, 25, 10, 6), 50, np.random.default_rng(0))
    race = Race(50, 4, trials=101, error=0.05)
    before, calls = race.active.copy(), race.calls.copy()
    for start in range(0, 101, 10):
        race.record(errors[:, start : start + 10])
        assert not (race.active & ~before).any() and (race.calls >= calls).all()
        assert (race.active.sum(1) != 1).all()  # nobody runs alone
        before, calls = race.active.copy(), race.calls.copy()
    assert not race.active.any()


@examples(50)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_more_trials_never_cost_fewer_calls_without_an_error(seed, few, more):
    errors = np.random.default_rng(seed).random((5, few + more, 2)).astype(np.float32)
    same = {"kind": "one_of_k", "error": 0.0, "block": 3}
    less = replay(errors, PAIR, trials=few, **same).calls
    assert (less <= replay(errors, PAIR, trials=few + more, **same).calls).all()


def test_a_lower_error_costs_more():
    errors = electorate((300, 201), 200, np.random.default_rng(0))
    calls = [
        replay(errors, PAIR, kind="one_of_k", trials=501, error=e, block=8).calls.mean() for e in (0.2, 0.01, 1e-4, 0.0)
    ]
    assert calls == sorted(calls)


def test_the_winner_is_lifted_above_those_who_had_more_votes():
    # 0 beats 1 and 2 three to two, with one vote of five.
    errors = duels({(1, 0, 2): 2, (2, 0, 1): 2, (0, 1, 2): 1}, 30, np.random.default_rng(3))
    p = race_by_hand(errors, trials=5, error=0.0, block=5).probabilities
    np.testing.assert_allclose(p, 1 / 3, atol=1e-6)
    assert (p.argmax(1) == 0).all() and (p.astype(np.float32).argmax(1) == 0).all()
    p = race_by_hand(errors, trials=5, error=0.0, block=1).probabilities
    assert (p.argmax(1) == 0).all()


@pytest.mark.parametrize(
    ("act", "kind", "message"),
    [
        (lambda: Race(3, 1, trials=5, error=0.1), ValueError, "two conditions"),
        (lambda: Race(3, 2, trials=5, error=1.0), ValueError, "error in \\[0, 1\\)"),
        (lambda: Race(3, 2, trials=5, error=0).record(np.zeros((3, 6, 2))), ValueError, "5 trials left"),
        (lambda: Race(3, 2, trials=5, error=0).record(np.zeros((3, 2, 4))), ValueError, "does not fit"),
        (lambda: Race(3, 2, trials=5, error=0).record(np.full((3, 2, 2), np.nan)), MissingErrors, "is NaN"),
        (
            lambda: fixed(np.full((1, 2, 2), np.nan), PAIR, kind="one_of_k", rule="mean", trials=2),
            MissingErrors,
            "needs all errors",
        ),
        (
            lambda: replay(np.zeros((1, 2, 2)), PAIR, kind="one_of_k", trials=3, error=0, block=1),
            ValueError,
            "do not hold 3 trials",
        ),
        (
            lambda: replay(np.zeros((1, 2, 2)), PAIR, kind="one_of_k", trials=2, error=0, block=0),
            ValueError,
            "at least one trial",
        ),
    ],
)
def test_what_cannot_be_decided_is_one_clear_message(act, kind, message):
    with pytest.raises(kind, match=message):
        act()


def test_contests_are_joined_to_outputs():
    first, second = np.array([[0.3, 0.7]]), np.array([[0.9, 0.1]])
    assert outcome([first], "one_of_k").tolist() == [[0.3, 0.7]]
    assert outcome([first], "multi_label").tolist() == [[0.7]]
    assert outcome([first, second], "multi_label").tolist() == [[0.7, 0.1]]
