"""Votes, durable: one line of JSON each, flushed to the disk before the voter is answered.

A crash in the middle of a line loses that line only: it is cut off before the next vote is written, and its voter is
asked again, for they had no answer. Votes say what kind of voter they come from; `simulated` ones exist for tests and
are named so wherever they are counted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError, InvalidRequest
from training.curation.calibrate.elo import Game
from training.curation.calibrate.pairs import Pair

SIDES = ("left", "right")
KINDS = ("human", "simulated")
VOTES_EACH = 3
CHECKS_TO_PASS = 0.75
"""Share of their attention checks that a voter must get right to be counted."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One voter's answer to one pair; `kind` is `human` or `simulated`, `at` seconds since 1970."""

    pair: str
    side: str
    voter: str
    kind: str
    at: float


class VoteBook:
    """The votes on a plan of pairs, in a file; one process at a time writes it.

    Raises:
        DataError: the file holds a vote that is not one.
    """

    def __init__(self, path: Path, pairs: Sequence[Pair], votes_each: int = VOTES_EACH) -> None:
        self.path, self.pairs = path, {pair.id: pair for pair in pairs}
        self._votes_each = votes_each
        self._lock = threading.Lock()
        self.votes = read_votes(path)

    def add(self, pair: str, side: str, voter: str, kind: str) -> Vote:
        """Store a vote; it is on the disk when this returns. Of a voter's votes on one pair the last one counts.

        Raises:
            InvalidRequest: no such pair, side or kind, or a voter without a name.
        """
        if pair not in self.pairs:
            raise InvalidRequest(f"no pair is called {pair!r}", param="pair")
        if side not in SIDES:
            raise InvalidRequest(f"a vote is for one of {', '.join(SIDES)}, not {side!r}", param="side")
        if kind not in KINDS:
            raise InvalidRequest(f"a voter is one of {', '.join(KINDS)}, not {kind!r}", param="kind")
        if not voter.strip() or len(voter) > 80:
            raise InvalidRequest("a voter has a name of 1 to 80 characters", param="voter")
        vote = Vote(pair, side, voter.strip(), kind, round(time.time(), 3))
        with self._lock:
            _append(self.path, json.dumps(dataclasses.asdict(vote)) + "\n")
            self.votes.append(vote)
        return vote

    def next_pair(self, voter: str) -> Pair | None:
        """The pair with the fewest votes that this voter has not seen; None where none is left to them.

        Attention checks are for every voter: they come at even distances among the rest.
        """
        with self._lock:
            voted = {vote.pair for vote in self.votes if vote.voter == voter}
            counts = Counter(vote.pair for vote in latest(self.votes))
        checks = [pair for pair in self.pairs.values() if pair.answer and pair.id not in voted]
        done = [self.pairs[name] for name in voted if name in self.pairs]
        num_checks = sum(1 for pair in done if pair.answer)
        real = [
            pair
            for pair in self.pairs.values()
            if not pair.answer and pair.id not in voted and counts[pair.id] < self._votes_each
        ]
        if checks and real and len(done) - num_checks >= 6 * (num_checks + 1) - 3:
            return checks[0]
        return min(real, key=lambda pair: counts[pair.id], default=None)


def read_votes(path: Path) -> list[Vote]:
    """The votes of a file, oldest first; none where there is no file. A torn last line is left out.

    Raises:
        DataError: a whole line is not a vote.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    try:
        return [Vote(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} holds a line that is no vote: {error}") from error


def _append(path: Path, line: str) -> None:
    """Write one line and wait until the disk has it, after cutting off what a crash left half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if path.exists() else "x+b") as stream:
        stream.seek(0, os.SEEK_END)
        end = stream.tell()
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                stream.seek(0)
                stream.truncate(stream.read().rfind(b"\n") + 1)
                stream.seek(0, os.SEEK_END)
        stream.write(line.encode())
        stream.flush()
        os.fsync(stream.fileno())


def latest(votes: Iterable[Vote]) -> list[Vote]:
    """Each voter's last word on each pair."""
    last = {(vote.pair, vote.voter): vote for vote in votes}
    return list(last.values())


def trusted_voters(votes: Sequence[Vote], pairs: dict[str, Pair]) -> set[str]:
    """Voters who got enough of their attention checks right; one who met none is trusted."""
    checked: dict[str, list[bool]] = defaultdict(list)
    for vote in votes:
        checked[vote.voter]
        if vote.pair in pairs and pairs[vote.pair].answer:
            checked[vote.voter].append(vote.side == pairs[vote.pair].answer)
    return {voter for voter, right in checked.items() if not right or sum(right) / len(right) >= CHECKS_TO_PASS}


def games_of(votes: Sequence[Vote], pairs: dict[str, Pair], axis: str, question: str) -> tuple[list[Game], list[str]]:
    """The games between an axis's subsets, by trusted voters, and the still each was played on."""
    counted = latest(votes)
    trusted = trusted_voters(counted, pairs)
    games: list[Game] = []
    stills: list[str] = []
    for vote in counted:
        pair = pairs.get(vote.pair)
        if pair is None or pair.answer or vote.voter not in trusted or (pair.axis, pair.question) != (axis, question):
            continue
        winner, loser = (pair.left, pair.right) if vote.side == "left" else (pair.right, pair.left)
        games.append(Game(_subset(winner), _subset(loser)))
        stills.append(pair.still)
    return games, stills


def _subset(clip: str) -> str:
    return "/".join(clip.split("/")[:2])
