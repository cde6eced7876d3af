"""Elo and Bradley-Terry: against a plain loop, scipy's optimiser, and strengths that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from model.errors import DataError
from training.curation.calibrate.bradley_terry import RIDGE, TO_ELO, bradley_terry, fit
from training.curation.calibrate.elo import Game, elo, indices, play

NAMES = ("motion/0", "motion/12.5", "motion/25", "motion/50")


def games_of(strengths: np.ndarray, count: int, seed: int = 0) -> list[Game]:
    """Games between random contenders, won as Bradley-Terry says."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        one, other = rng.choice(len(strengths), 2, replace=False)
        wins = rng.random() < 1 / (1 + np.exp(strengths[other] - strengths[one]))
        out.append(Game(NAMES[one], NAMES[other]) if wins else Game(NAMES[other], NAMES[one]))
    return out


def plain_elo(games: list[Game]) -> dict[str, float]:
    """Elo as a textbook's loop."""
    ratings = dict.fromkeys(NAMES, 1000.0)
    for game in games:
        chance = 1 / (1 + 10 ** ((ratings[game.loser] - ratings[game.winner]) / 400))
        ratings[game.winner] += 1.0 * (1 - chance)
        ratings[game.loser] -= 1.0 * (1 - chance)
    return ratings


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=60))
def test_one_order_gives_what_a_plain_loop_gives(drawn: list[tuple[int, int]]) -> None:
    games = [Game(NAMES[one], NAMES[(one + step) % 4]) for one, step in drawn]
    won, lost = indices(games, NAMES)
    (ratings,) = play(np.arange(len(games))[None], won, lost, 4)
    assert dict(zip(NAMES, ratings, strict=True)) == pytest.approx(plain_elo(games))


def test_elo_keeps_the_mean_and_orders_what_differs_clearly() -> None:
    rated = elo(games_of(np.array([-1.0, -0.3, 0.3, 1.0]), 2000), NAMES, bootstraps=200)
    values = [one.value for one in rated]
    assert np.mean(values) == pytest.approx(1000)
    assert values == sorted(values)
    assert all(one.low <= one.value <= one.high for one in rated)
    assert sum(one.games for one in rated) == 2 * 2000


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(5, 200))
def test_bradley_terry_is_what_a_general_optimiser_finds(seed: int, count: int) -> None:
    won, lost = indices(games_of(np.array([-1.5, 0.0, 0.2, 2.0]), count, seed), NAMES)
    won, lost = won.astype(int), lost.astype(int)
    counts = np.zeros((4, 4))
    np.add.at(counts, (won, lost), 1)

    def minus_log_likelihood(b: np.ndarray) -> float:
        chances = 1 / (1 + np.exp(-(b[won] - b[lost])))
        return float(-np.log(chances).sum() + RIDGE / 2 * (b**2).sum())

    found = minimize(minus_log_likelihood, np.zeros(4), method="BFGS", options={"gtol": 1e-6}).x
    assert fit(counts) == pytest.approx(found, abs=1e-3)


def test_bradley_terry_recovers_known_strengths_within_its_intervals() -> None:
    strengths = np.array([-0.8, -0.2, 0.2, 0.8])
    games = games_of(strengths, 4000, seed=3)
    rated = bradley_terry(games, [f"still {index % 50}" for index in range(4000)], NAMES, bootstraps=200)
    truth = 1000 + TO_ELO * (strengths - strengths.mean())
    for one, true in zip(rated, truth, strict=True):
        assert one.value == pytest.approx(true, abs=25)
        assert one.low - 15 <= true <= one.high + 15


def test_who_won_every_game_stays_finite() -> None:
    rated = bradley_terry([Game(NAMES[3], name) for name in NAMES[:3]] * 5, ["a"] * 15, NAMES, bootstraps=20)
    assert all(np.isfinite([one.value, one.low, one.high]).all() for one in rated)
    assert rated[3].value == max(one.value for one in rated)


def test_votes_on_few_stills_leave_wider_intervals_than_on_many() -> None:
    games = games_of(np.array([-0.5, 0.0, 0.0, 0.5]), 400)
    strengths = np.array([-0.5, 0.0, 0.0, 0.5])
    # Each still's votes repeat one game: forty votes are then worth one.
    alike = [game for game in games_of(strengths, 10, seed=5) for _ in range(40)]
    few = bradley_terry(alike, [f"still {index // 40}" for index in range(400)], NAMES, bootstraps=200)
    many = bradley_terry(games, [f"still {index}" for index in range(400)], NAMES, bootstraps=200)
    assert np.mean([o.high - o.low for o in few]) > 2 * np.mean([o.high - o.low for o in many])


@pytest.mark.parametrize("games", [[], [Game("motion/0", "someone")]])
def test_no_votes_or_strangers_are_refused(games: list[Game]) -> None:
    with pytest.raises(DataError, match="votes"):
        elo(games, NAMES)
