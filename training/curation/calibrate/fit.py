"""From votes to a thresholds file that carries its evidence.

For each axis the subsets are rated on all votes together and on each question alone. The subset that Bradley-Terry puts
first gives the threshold, if its 95% interval lies above the rating of leaving nothing out; else the axis is undecided
and gets no threshold. Simulated votes, which exist for tests, are counted apart and named in every output.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.errors import DataError
from training.curation.calibrate.bradley_terry import bradley_terry
from training.curation.calibrate.elo import Rating, elo
from training.curation.calibrate.pairs import QUESTIONS, Pair, contender
from training.curation.calibrate.prepare import CalibrationPlan, read_plan
from training.curation.calibrate.subsets import limit_of
from training.curation.calibrate.votes import Vote, games_of, latest, read_votes, trusted_voters
from training.curation.filter import Scores, load_scores
from training.curation.tables import write_text

VOTES, EVIDENCE = "votes.jsonl", "evidence.json"
POOLED = "all"


@dataclass(frozen=True, slots=True)
class AxisResult:
    """What the votes say of one axis.

    Args:
        ratings: by question (and `all`), then by method, the subsets' ratings in order of share.
        share: percent to leave out; None where the votes do not decide.
        why: the decision in words.
    """

    axis: str
    ratings: dict[str, dict[str, list[Rating]]]
    share: float | None
    why: str


def rate_axis(plan: CalibrationPlan, votes: Sequence[Vote], axis: str) -> AxisResult:
    """Rate an axis's subsets.

    Raises:
        DataError: there are no votes on it by voters who passed their attention checks.
    """
    pairs = {pair.id: pair for pair in plan.pairs}
    names = [contender(axis, share) for share in sorted(plan.shares)]
    played = {question: games_of(votes, pairs, axis, question) for question in QUESTIONS}
    games = [game for own, _ in played.values() for game in own]
    stills = [still for _, own in played.values() for still in own]
    ratings = {POOLED: {"elo": elo(games, names), "bradley_terry": bradley_terry(games, stills, names)}}
    for question, (own, where) in played.items():
        if own:
            ratings[question] = {"elo": elo(own, names), "bradley_terry": bradley_terry(own, where, names)}
    strengths = ratings[POOLED]["bradley_terry"]
    best, none = max(strengths, key=lambda one: one.value), strengths[0]
    if best is none:
        return AxisResult(axis, ratings, None, "leaving nothing out is rated best")
    share = float(best.name.rpartition("/")[2])
    summary = f"leaving out {share:g}% is rated {best.value:.0f} ({best.low:.0f} to {best.high:.0f}), "
    summary += f"leaving out nothing {none.value:.0f} ({none.low:.0f} to {none.high:.0f})"
    if best.low <= none.value:
        return AxisResult(axis, ratings, None, f"undecided: {summary}")
    return AxisResult(axis, ratings, share, summary)


def fit(folder: Path, scores: Scores | None = None) -> str:
    """Rate every axis of a calibration; writes evidence.json and thresholds.toml there, and returns the latter's text.

    Args:
        scores: of the dataset; left out, they are read from it.

    Raises:
        DataError: no plan, or no votes.
    """
    plan = read_plan(folder)
    votes = read_votes(folder / VOTES)
    if not votes:
        raise DataError(f"{folder} holds no votes: open the page with `stillmotion curate calibrate vote {folder}`")
    results = [rate_axis(plan, votes, axis) for axis in plan.axes]
    known = load_scores(Path(plan.dataset)) if scores is None else scores
    counts = _counts(votes, {pair.id: pair for pair in plan.pairs})
    counts["votes_sha256"] = hashlib.sha256((folder / VOTES).read_bytes()).hexdigest()
    evidence = {"votes": counts, "recipe": plan.recipe, "axes": [asdict(result) for result in results]}
    write_text(folder / EVIDENCE, json.dumps(evidence, indent=2) + "\n")
    text = _thresholds(plan, results, counts, known)
    write_text(folder / "thresholds.toml", text)
    return text


def _counts(votes: Sequence[Vote], pairs: dict[str, Pair]) -> dict[str, Any]:
    counted = latest(votes)
    trusted = trusted_voters(counted, pairs)
    kinds = Counter(vote.kind for vote in counted if vote.voter in trusted)
    voters = {vote.voter for vote in counted}
    return {
        "human": kinds["human"],
        "simulated": kinds["simulated"],
        "voters": len(voters),
        "voters_left_out": len(voters - trusted),
    }


def _thresholds(plan: CalibrationPlan, results: Sequence[AxisResult], counts: dict[str, Any], scores: Scores) -> str:
    lines = [f"# Chosen by {counts['human']} human votes of {counts['voters'] - counts['voters_left_out']} voters"]
    if counts["simulated"]:
        lines = [f"# NOT A HUMAN JUDGEMENT: {counts['simulated']} votes are SIMULATED, {counts['human']} human"]
    lines += [f"# on proxies of the recipe {plan.recipe}; ratings in {EVIDENCE}.", ""]
    for result in results:
        if result.share is None:
            lines += [f"# {result.axis}: no threshold; {result.why}", ""]
            continue
        ((side, value),) = limit_of(result.axis, result.share, scores).items()
        lines += [f"[{result.axis}]", f"{side} = {value!r}  # {result.why}", ""]
    lines.append("[evidence]")
    lines += [f"{name} = {json.dumps(value)}" for name, value in counts.items()]
    return "\n".join(lines) + "\n"
