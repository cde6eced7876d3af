"""Elo ratings of the contenders, as the paper fits them: K = 1, start 1000, 1000 shuffled bootstraps (appendix E.2).

Elo depends on the order of the games. Each bootstrap draws as many votes as there are, with replacement and so in a
random order; the rating is the mean over the bootstraps and its interval their middle 95%.

Legend: R bootstraps, P contenders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.errors import DataError

Array = np.ndarray[Any, np.dtype[np.float64]]

K, START, SCALE = 1.0, 1000.0, 400.0
BOOTSTRAPS = 1000


@dataclass(frozen=True, slots=True)
class Game:
    """One vote between two contenders: who was preferred, and over whom."""

    winner: str
    loser: str


@dataclass(frozen=True, slots=True)
class Rating:
    """A contender's strength on the Elo scale, with the interval it lies in; `games` it took part in."""

    name: str
    value: float
    low: float
    high: float
    games: int


def expected(own: Array | float, other: Array | float) -> Any:
    """The chance that Elo gives the first of beating the second."""
    return 1 / (1 + 10 ** ((np.asarray(other) - own) / SCALE))


def play(order: np.ndarray[Any, np.dtype[np.intp]], winners: Array, losers: Array, count: int) -> Array:
    """Ratings [R, P] after the games in R orders; `order` is [R, games], `winners` and `losers` hold indices."""
    ratings = np.full((len(order), count), START)
    runs = np.arange(len(order))
    for column in order.T:
        won, lost = winners[column].astype(np.intp), losers[column].astype(np.intp)
        gain = K * (1 - expected(ratings[runs, won], ratings[runs, lost]))
        ratings[runs, won] += gain
        ratings[runs, lost] -= gain
    return ratings


def elo(games: Sequence[Game], contenders: Sequence[str], seed: int = 0, bootstraps: int = BOOTSTRAPS) -> list[Rating]:
    """Every contender's rating, in the order given.

    Raises:
        DataError: no games, or one between contenders not listed.
    """
    won, lost = indices(games, contenders)
    order = np.random.default_rng(seed).integers(0, len(games), (bootstraps, len(games)))
    runs = play(order, won, lost, len(contenders))
    return summary(contenders, runs.mean(axis=0), runs, np.concatenate([won, lost]))


def indices(games: Sequence[Game], contenders: Sequence[str]) -> tuple[Array, Array]:
    """Winners' and losers' places among the contenders, [games] each.

    Raises:
        DataError: no games, or one between contenders not listed.
    """
    index_of = {name: index for index, name in enumerate(contenders)}
    if not games:
        raise DataError("there are no votes to rate by: open the voting page first")
    strangers = {name for game in games for name in (game.winner, game.loser)} - set(index_of)
    if strangers:
        raise DataError(f"votes name contenders that are not rated: {', '.join(sorted(strangers))}")
    return np.array([index_of[g.winner] for g in games], float), np.array([index_of[g.loser] for g in games], float)


def summary(contenders: Sequence[str], values: Array, runs: Array, played: Array) -> list[Rating]:
    """Ratings from point values [P] and bootstrap runs [R, P]."""
    low, high = np.quantile(runs, [0.025, 0.975], axis=0)
    games = np.bincount(played.astype(np.intp), minlength=len(contenders))
    rows = zip(contenders, values, low, high, games, strict=True)
    return [Rating(name, float(v), float(lo), float(hi), int(n)) for name, v, lo, hi, n in rows]
