"""Wrong calls, sixty and more: each ends with one line that says what to do, the documented exit code, no traceback."""

from __future__ import annotations

import importlib
import sqlite3
import sys
from pathlib import Path
from typing import Final

import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.main import app

WRONG: Final[list[tuple[str, int, str]]] = [
    # generate
    ("generate", 2, "IMAGE"),
    ("generate nowhere.jpg", 2, "nowhere.jpg"),
    ("generate folder", 2, "folder"),
    ("generate text.jpg", 1, "convert it"),
    ("generate still.png -o x.avi", 2, ".mp4"),
    ("generate still.png -o folder --format mp4", 2, "is a folder"),
    ("generate still.png -o still.png --format mp4", 2, "replace the still"),
    ("generate still.png -o taken.mp4", 2, "--overwrite"),
    ("generate still.png -o pair.mp4", 2, "pair.mp4 and pair.png already exist"),
    ("generate still.png -o text.jpg/x.mp4", 1, "cannot write to the folder"),
    ("generate still.png --model nothing -o x.mp4", 1, "shipped:"),
    ("generate still.png --model folder -o x.mp4", 1, "model_index.json"),
    ("generate still.png --device cuda:77 -o x.mp4", 2, "take cpu"),
    ("generate still.png --device gpu -o x.mp4", 2, "cuda:1"),
    ("generate still.png --steps 0 -o x.mp4", 2, "num_inference_steps"),
    ("generate still.png --fps 1000 -o x.mp4", 2, "fps"),
    ("generate still.png --motion-bucket 300 -o x.mp4", 2, "motion_bucket_id"),
    ("generate still.png --seed seven", 2, "--seed"),
    ("generate still.png --solver magic", 2, "euler"),
    ("generate still.png --width 13 -o x.mp4", 2, "width must be"),
    ("generate still.png --prompt words -o x.mp4", 2, "prompt"),
    ("generate --elevation 5 -o x.mp4", 2, "IMAGE"),
    ("generate still.png --threads 0", 2, "threads"),
    ("generate still.png --reuse-every 2 --deterministic -o x.mp4", 2, "without --deterministic"),
    ("generate still.png --guidance-interval 5 1 -o x.mp4", 2, "LOW < HIGH"),
    ("generate still.png --lora nothing -o x.mp4", 2, "nothing"),
    ("generate still.png --denoiser tensorrt -o x.mp4", 2, "tensorrt"),
    ("generate still.png --interpolate --interpolation-model folder -o x.mp4", 1, "model_index.json"),
    # serve
    ("serve --device cuda:77", 2, "take cpu"),
    ("serve --device gpu", 2, "cuda:1"),
    ("serve --artifacts text.jpg", 2, "--artifacts"),
    ("serve --artifacts nosuch://bucket", 2, "nosuch"),
    ("serve --database-url text.jpg", 2, "--database-url"),
    ("serve --database-url sqlite:///text.jpg/jobs.db", 1, "--database-url"),
    ("serve --database-url mysql://host/db", 2, "SQLite or Postgres"),
    ("serve --host 0.0.0.0", 1, "--allow-unkeyed"),
    ("serve --port 70000", 2, "65535"),
    ("serve --model folder", 1, "model_index.json"),
    ("serve --engine triton", 2, "go together"),
    ("serve --lora nowhere.safetensors --model folder", 1, "model_index.json"),
    # keys
    ("keys list --database-url sqlite:///text.jpg/jobs.db", 1, "--database-url"),
    ("keys list --database-url sqlite:///text.jpg", 1, "not a database"),
    ("keys list --database-url nonsense", 2, "--database-url"),
    ("keys revoke nobody", 2, "keys create"),
    ("keys create studio --weight -1", 2, "weight"),
    # batch
    ("batch nowhere.jsonl --out out", 1, "no manifest"),
    ("batch text.jpg --out out", 1, ".jsonl"),
    ("batch semicolons.csv --out out --dry-run", 1, "semicolons"),
    ("batch utf16.csv --out out --dry-run", 1, "UTF-16"),
    ("batch pictures --out out --set fps", 2, "NAME=VALUE"),
    ("batch pictures --out out --shard 3", 2, "i/n"),
    ("batch pictures --out out --shard 5/3", 2, "i/n"),
    ("batch pictures --out out --device gpu", 2, "cuda:1"),
    ("batch pictures --out out --model nothing", 1, "shipped:"),
    # replay, models
    ("replay text.jpg", 2, ""),
    ("replay bare.mp4", 2, "carries no manifest"),
    ("models folder", 2, "folder"),
    # data, curate, train, eval
    ("curate run nowhere.mp4 --out D", 2, "nowhere.mp4"),
    ("curate run folder --out D --runner spark", 2, "local"),
    ("curate run folder --out D --ray-address 127.0.0.1:1", 2, "--runner ray"),
    ("curate run folder --out D --min-length 9 --max-length 1", 2, "--min-length"),
    ("curate run folder --out D --tool clip", 2, "NAME.KEY=VALUE"),
    ("curate run folder --out D --cuts scissors", 2, "cascade"),
    ("curate run folder --out D --score beauty", 2, "beauty"),
    ("curate filter folder", 1, "folder"),
    ("train", 2, "mini-vae"),
    ("train nothing --data folder --out runs", 2, "mini-vae"),
    ("train mini-vae", 2, "--data and --out"),
    ("train mini-vae --data folder --out runs", 1, "data starter"),
    ("train mini-vae --data folder --out runs --set lr", 2, "KEY=VALUE"),
    ("train mini-vae --data folder --out runs --set nothing=1", 2, "nothing"),
    ("eval nothing", 1, "shipped:"),
    ("eval mini-image-to-video --data folder", 1, "data starter"),
    ("eval mini-image-to-video --data folder --device gpu", 2, "cuda:1"),
    # export, triton
    ("export nothing --out R", 1, "shipped:"),
    ("export mini-image-to-video", 2, "--out"),
    ("export folder --rollback", 1, "folder"),
    ("triton", 2, "--model-repository"),
    ("triton --model-repository folder", 2, "stillmotion export"),
    ("triton --model-repository repository --model other", 2, "there are: mini"),
    ("nonsense", 2, "nonsense"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the calls name, in the working folder."""
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "still.png")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "pictures" / "a.png")
    (tmp_path / "text.jpg").write_text("no picture, no folder, no database" * 40)
    (tmp_path / "folder").mkdir()
    for name in ("taken.mp4", "pair.mp4", "pair.png"):
        (tmp_path / name).touch()
    (tmp_path / "bare.mp4").write_bytes(b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\x08mdat")
    (tmp_path / "semicolons.csv").write_text("image;seed\na.jpg;1\n")
    (tmp_path / "utf16.csv").write_text("image,seed\na.jpg,1\n", "utf-16")
    (tmp_path / "repository" / "mini").mkdir(parents=True)
    (tmp_path / "repository" / "mini" / "config.pbtxt").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("call", "code", "words"), WRONG, ids=[call for call, _, _ in WRONG])
def test_a_wrong_call(call: str, code: int, words: str, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, call.split())
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.stderr
    assert words in " ".join(result.stderr.replace("│", " ").split()), result.stderr
    assert "Traceback" not in result.output
    if result.stderr.startswith("error: "):
        assert result.stderr.count("\n") == 1
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert before.items() <= after.items(), "a file of the user's changed"
    assert not list(folder.rglob("x.*"))


def test_there_are_sixty() -> None:
    assert len({call for call, _, _ in WRONG}) == len(WRONG) >= 60


def test_listing_keys_makes_no_folder(folder: Path) -> None:
    before = set(folder.rglob("*"))
    result = CliRunner().invoke(app, ["keys", "list"])
    assert (result.exit_code, set(folder.rglob("*"))) == (0, before)
    assert "no keys" in result.stderr


def test_a_database_of_something_else_is_left_alone(folder: Path) -> None:
    with sqlite3.connect(folder / "other.db") as database:
        database.execute("CREATE TABLE jobs (mine TEXT)")
    database.close()
    result = CliRunner().invoke(app, ["keys", "create", "studio", "--database-url", "sqlite:///other.db"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.stderr
    with sqlite3.connect(folder / "other.db") as database:
        assert database.execute("SELECT name, sql FROM sqlite_master").fetchall() == [
            ("jobs", "CREATE TABLE jobs (mine TEXT)")
        ]
    database.close()


PROGRAMS: Final[list[tuple[str, str]]] = [
    ("backends nothing", "shipped:"),
    ("batch_throughput --still nowhere.jpg", "nowhere.jpg"),
    ("curation_gain nowhere.mp4 nowhere", "nowhere"),
    ("film_cuts nowhere.mp4 nowhere", "nowhere"),
    ("laptop mini-image-to-video nowhere.jpg", "nowhere.jpg"),
    ("motion_spread nowhere", "data starter"),
    ("one_video --stills nowhere", "data starter"),
    ("optimizers mini-frame-interpolation-long --data nowhere", "data starter"),
    ("real_weights nowhere", "nowhere"),
    ("step_batching --still nowhere.jpg", "nowhere.jpg"),
    ("svd_xt_gpu --device cuda:77", "CUDA"),
    ("triton_overhead --model nothing", "shipped:"),
]


@pytest.mark.parametrize(("call", "words"), PROGRAMS, ids=[call for call, _ in PROGRAMS])
def test_a_benchmark_without_what_it_needs(
    call: str, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.entry import run_main

    name, *arguments = call.split()
    program = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        run_main(program.main)
    assert words in str(ended.value), ended.value
    assert "\n" not in str(ended.value)
