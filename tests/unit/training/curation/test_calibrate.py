"""The road from scores to thresholds: subsets, pairs that tell nothing, votes that last, and what is made of them."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import threading
import tomllib
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.errors import DataError, InvalidRequest
from model.media.video import decode_video, encode_video
from tests.support.simulated_voter import simulate
from training.curation.calibrate.fit import fit
from training.curation.calibrate.page import VotingServer
from training.curation.calibrate.pairs import Pair, plan_pairs
from training.curation.calibrate.prepare import Calibration, CalibrationPlan, prepare, read_plan
from training.curation.calibrate.subsets import SHARES, held_out, leaves
from training.curation.calibrate.votes import Vote, VoteBook, read_votes, trusted_voters
from training.curation.filter import Scores, parse_rules
from training.curation.records import ClipRecord, ScoreRecord
from training.curation.tables import write_table
from training.data.sources import FILM_SHA256
from training.data.split import FILM_HELD_OUT, clip_split
from training.data.starter import load_items

pytest.importorskip("pyarrow")

COUNT = 32
HELD_OUT = [index for index in range(COUNT) if clip_split("footage", 60.0 * index + 1, 60.0 * index + 2) == "heldout"]


def record(index: int, folder: Path | None = None) -> ClipRecord:
    """A clip of one second; a moving square in a small picture, of the held-out ones only: no other is read."""
    name, file = f"{index:020x}", f"clips/{index:020x}.mp4"
    if folder is not None:
        frames = np.zeros((6, 48, 64, 3), np.uint8)
        for t in range(6):
            frames[t, 10:30, 4 * t : 4 * t + 16] = 40 + 5 * index
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(encode_video(frames, 6, "mp4") if index in HELD_OUT else b"not read")
    return ClipRecord(
        name, "footage", 60.0 * index + 1, 60.0 * index + 2, 0, 0, 0, 0, file, "", 6, 64, 48, Fraction(6), "whole"
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A curated dataset of COUNT clips: flow rises with the clip's number, text falls."""
    folder = tmp_path_factory.mktemp("dataset")
    clips = [record(index, folder) for index in range(COUNT)]
    write_table(folder / "clips.parquet", ClipRecord, clips)
    for name, values in {"flow_mean": range(COUNT), "text_area": range(COUNT, 0, -1)}.items():
        rows = [ScoreRecord(c.clip_id, name, float(v), None, "t", "") for c, v in zip(clips, values, strict=True)]
        write_table(folder / "scores" / f"{name}.parquet", ScoreRecord, rows)
    return folder


def wanted(dataset: Path, folder: Path) -> Calibration:
    return Calibration(dataset, folder, ("flow_mean", "text_area"), "mini-image-to-video", folder, stills=2)


@pytest.fixture(scope="module")
def prepared(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CalibrationPlan, list[str]]:
    """A prepared calibration whose proxies are stood in for: what they are shown comes back brighter."""
    folder = tmp_path_factory.mktemp("calibration")
    trained: list[str] = []

    def train(recipe: str, data: Path, out: Path) -> Path:
        trained.append(data.name)
        return out

    def sample(_: Path, pictures: dict[str, np.ndarray], work: Path) -> dict[str, np.ndarray]:
        level = 20 * (len(trained) % 5)
        return {
            name: np.repeat(np.clip(one[None].astype(int) + level, 0, 255).astype(np.uint8), 4, 0)
            for name, one in pictures.items()
        }

    plan = prepare(wanted(dataset, folder), train=train, sample=sample)
    return folder, plan, trained


def test_a_subset_leaves_out_exactly_its_share_from_the_worse_end() -> None:
    scores = Scores([f"{i:020x}" for i in range(40)], {"flow_mean": np.arange(40.0), "text_area": np.arange(40.0)})
    for share in SHARES:
        assert leaves("flow_mean", share, scores).sum() == 40 - round(0.4 * share)
    assert not leaves("flow_mean", 25, scores)[:10].any()
    assert not leaves("text_area", 25, scores)[-10:].any()


def test_an_axis_that_was_not_scored_or_is_not_known_is_refused() -> None:
    scores = Scores(["a"] * 40, {"flow_mean": np.full(40, np.nan), "moon": np.arange(40.0)})
    with pytest.raises(DataError, match="flow_mean"):
        leaves("flow_mean", 25, scores)
    with pytest.raises(InvalidRequest, match="moon"):
        leaves("moon", 25, scores)


def test_what_is_held_out_elsewhere_is_held_out_here() -> None:
    clips = [record(index) for index in range(COUNT)]
    assert len(HELD_OUT) > 1
    assert held_out(clips) == {f"{index:020x}" for index in HELD_OUT}
    first, past = (frame / 24 for frame in FILM_HELD_OUT[0])
    film = [dataclasses.replace(clips[0], source=FILM_SHA256, start_s=past - 0.1, end_s=past + 2)]
    film.append(dataclasses.replace(clips[1], source=FILM_SHA256, start_s=first - 2, end_s=first))
    film.append(dataclasses.replace(clips[2], source=FILM_SHA256, start_s=500.0, end_s=503.0))
    assert held_out(film) == {clips[0].clip_id}


def test_subsets_are_datasets_that_keep_the_held_out_clips_apart(
    prepared: tuple[Path, CalibrationPlan, list[str]], dataset: Path
) -> None:
    folder, _, trained = prepared
    assert trained == ["all", *(f"{axis}-{s}" for axis in ("flow_mean", "text_area") for s in ("12.5", "25", "50"))]
    items = load_items(folder / "subsets" / "flow_mean-50")
    assert {item.id for item in items if item.split == "train"} == {
        f"{index:020x}" for index in range(COUNT // 2, COUNT) if index not in HELD_OUT
    }
    assert {item.id for item in items if item.split == "heldout"} == {f"{index:020x}" for index in HELD_OUT}
    file = folder / "subsets" / "flow_mean-50" / items[0].file
    assert file.read_bytes() == (dataset / "clips" / f"{items[0].id}.mp4").read_bytes()


def test_every_pair_of_subsets_is_asked_about_on_every_still() -> None:
    pairs = plan_pairs(["a", "b"], SHARES, ["x", "y", "z"])
    real = [pair for pair in pairs if not pair.answer]
    assert len(real) == 2 * 6 * 3 * 2
    assert len({(frozenset((p.left, p.right)), p.question) for p in real}) == len(real)
    checks = [pair for pair in pairs if pair.answer]
    assert len(checks) == len(real) // 12
    assert len({pair.id for pair in pairs}) == len(pairs)
    shown_left = sum(pair.left.split("/")[1] < pair.right.split("/")[1] for pair in real)
    assert 0.25 < shown_left / len(real) < 0.75
    for pair in checks:
        assert (pair.left if pair.answer == "right" else pair.right).endswith("/spoilt")


def a_plan() -> list[Pair]:
    return plan_pairs(["a"], (0, 25, 50), ["x", "y", "z", "w"])


def test_votes_are_there_after_a_crash_in_the_middle_of_one(tmp_path: Path) -> None:
    path, pairs = tmp_path / "votes.jsonl", a_plan()
    book = VoteBook(path, pairs)
    book.add(pairs[0].id, "left", "ann", "human")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"pair": "torn')
    assert read_votes(path) == book.votes
    again = VoteBook(path, pairs)
    again.add(pairs[1].id, "right", "ann", "human")
    assert path.read_bytes().startswith(whole)
    assert [(vote.pair, vote.side) for vote in read_votes(path)] == [(pairs[0].id, "left"), (pairs[1].id, "right")]


def test_a_line_that_is_no_vote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").write_text('{"pair": "x"}\n')
    with pytest.raises(DataError, match="no vote"):
        read_votes(tmp_path / "votes.jsonl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pair": "none"}, "no pair"),
        ({"side": "up"}, "left, right"),
        ({"voter": " "}, "name"),
        ({"kind": "x"}, "human"),
    ],
)
def test_a_wrong_vote_is_refused_and_not_stored(tmp_path: Path, change: dict[str, str], said: str) -> None:
    pairs = a_plan()
    book = VoteBook(tmp_path / "votes.jsonl", pairs)
    vote = {"pair": pairs[0].id, "side": "left", "voter": "ann", "kind": "human"} | change
    with pytest.raises(InvalidRequest, match=said):
        book.add(**vote)
    assert not (tmp_path / "votes.jsonl").exists()


def test_every_pair_gets_its_votes_and_every_voter_their_checks(tmp_path: Path) -> None:
    pairs = a_plan()
    book = VoteBook(tmp_path / "votes.jsonl", pairs, votes_each=2)
    for voter in ("ann", "bob", "cleo"):
        simulate(book, voter, {"a/0": 0, "a/25": 0, "a/50": 0}, seed=1)
    counts = Counter(vote.pair for vote in book.votes)
    assert {counts[pair.id] for pair in pairs if not pair.answer} == {2}
    assert all(vote.kind == "simulated" and vote.voter.startswith("simulated") for vote in book.votes)
    checked = Counter(vote.voter for vote in book.votes if book.pairs[vote.pair].answer)
    assert checked["simulated ann"] >= 1
    seen = Counter((vote.voter, vote.pair) for vote in book.votes)
    assert set(seen.values()) == {1}


def test_who_fails_the_attention_checks_is_not_counted(tmp_path: Path) -> None:
    pairs = a_plan()
    book = VoteBook(tmp_path / "votes.jsonl", pairs)
    checks = [pair for pair in pairs if pair.answer]
    for check in checks:
        book.add(check.id, check.answer, "careful", "human")
        book.add(check.id, "left" if check.answer == "right" else "right", "careless", "human")
    book.add(pairs[0].id, "left", "unchecked", "human")
    assert trusted_voters(book.votes, book.pairs) == {"careful", "unchecked"}


def test_a_clear_preference_becomes_a_threshold_with_its_evidence(
    prepared: tuple[Path, CalibrationPlan, list[str]], tmp_path: Path
) -> None:
    folder, plan, _ = prepared
    scores = Scores([f"{i:020x}" for i in range(COUNT)], {axis: np.arange(float(COUNT)) for axis in plan.axes})
    strengths = {"flow_mean/0": 0.0, "flow_mean/12.5": 0.5, "flow_mean/25": 3.0, "flow_mean/50": -1.0}
    strengths |= {f"text_area/{share:g}": 0.0 for share in plan.shares}
    (tmp_path / "plan.json").write_text((folder / "plan.json").read_text())
    rng = np.random.default_rng(0)
    votes = []
    for pair, voter in itertools.product(plan.pairs, range(30)):
        one, other = (strengths["/".join(clip.split("/")[:2])] for clip in (pair.left, pair.right))
        left = pair.answer == "left" if pair.answer else rng.random() < 1 / (1 + np.exp(other - one))
        votes.append(Vote(pair.id, "left" if left else "right", f"simulated {voter}", "simulated", 0.0))
    lines = [json.dumps(dataclasses.asdict(vote)) + "\n" for vote in votes]
    (tmp_path / "votes.jsonl").write_text("".join(lines))
    text = fit(tmp_path, scores)
    assert text.startswith("# NOT A HUMAN JUDGEMENT")
    (rule,) = [one for one in parse_rules(text) if one.axis == "flow_mean"]
    assert rule.at_least == np.quantile(np.arange(COUNT), 0.25)
    evidence = json.loads((tmp_path / "evidence.json").read_text())
    assert evidence["votes"]["human"] == 0
    assert evidence["votes"]["simulated"] == tomllib.loads(text)["evidence"]["simulated"] > 1000
    rated = {one["name"]: one["value"] for one in evidence["axes"][0]["ratings"]["all"]["elo"]}
    assert max(rated, key=rated.__getitem__) == "flow_mean/25"


def test_no_votes_make_no_thresholds(prepared: tuple[Path, CalibrationPlan, list[str]]) -> None:
    with pytest.raises(DataError, match="no votes"):
        fit(prepared[0])


def test_an_unfinished_preparation_is_not_voted_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepare"):
        read_plan(tmp_path)


@pytest.fixture
def server(prepared: tuple[Path, CalibrationPlan, list[str]], tmp_path: Path) -> Iterator[VotingServer]:
    folder, _, _ = prepared
    (tmp_path / "plan.json").write_text((folder / "plan.json").read_text())
    for name in ("clips", "stills"):
        (tmp_path / name).symlink_to(folder / name)
    with VotingServer(tmp_path) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(url: str, body: object | None = None) -> tuple[int, bytes]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_the_page_takes_votes_and_tells_nothing_of_the_subsets(server: VotingServer) -> None:
    assert b"<video" in ask(server.url)[1]
    told = ask(f"{server.url}next?voter=ann")[1]
    asked = json.loads(told)
    assert not any(word in told.decode() for word in ("flow_mean", "text_area", "spoilt", "12.5", "answer"))
    still = Image.open(io.BytesIO(ask(server.url.rstrip("/") + asked["still"])[1]))
    assert still.size == (64, 48), "what both clips start from"
    frames, _ = decode_video(ask(server.url.rstrip("/") + asked["left"])[1])
    assert frames.shape == (4, 48, 64, 3)
    vote = {"pair": asked["pair"], "side": "right", "voter": "ann"}
    assert ask(f"{server.url}vote", vote)[0] == 200
    (stored,) = read_votes(server.folder / "votes.jsonl")
    assert (stored.pair, stored.side, stored.voter, stored.kind) == (asked["pair"], "right", "ann", "human")
    following = json.loads(ask(f"{server.url}next?voter=ann")[1])
    assert following["done"] == 1
    assert following["pair"] != asked["pair"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("vote", {"pair": "none", "side": "left", "voter": "ann"}, 400),
        ("vote", {"pair": "none"}, 400),
        ("vote", ["left"], 400),
        ("other", {}, 400),
        ("clip/none/left", None, 404),
        ("still/none", None, 404),
        ("clip/../plan.json", None, 404),
    ],
)
def test_what_the_page_does_not_know_is_refused(
    server: VotingServer, path: str, body: object | None, status: int
) -> None:
    assert ask(server.url + path, body)[0] == status


def test_votes_of_many_at_once_are_all_kept(tmp_path: Path) -> None:
    pairs = a_plan()
    book = VoteBook(tmp_path / "votes.jsonl", pairs)
    names = [f"voter {index}" for index in range(8)]
    chosen = list(itertools.islice(itertools.cycle(pairs), 10))
    threads = [
        threading.Thread(target=lambda name=name: [book.add(p.id, "left", name, "human") for p in chosen])
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(vote.voter for vote in read_votes(tmp_path / "votes.jsonl")) == dict.fromkeys(names, 10)
