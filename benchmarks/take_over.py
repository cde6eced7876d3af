"""Work begun by one state of the code, finished by another: a killed server's jobs and files are taken over.

    python -m benchmarks.take_over write STORE [--checkout DIR]     # with the code before a change
    python -m benchmarks.take_over check STORE [--checkout DIR]     # with the code after it

`write` starts `stillmotion serve --deterministic` on a new database and artifact folder, submits jobs, and kills the
server (SIGKILL) at a moment at which some are completed, one is half done with its state stored, a chained one has its
first stage and some of its pairs stored, and some wait. STORE keeps all of it, with each request and the frames_sha256
that a server makes of it that nothing happens to. `check` starts a server on a copy of STORE, waits for every job, and
prints a table; its exit code is 1 unless

    every job is there, none twice, and ended as completed, once, with a history without gaps;
    what was completed before is as it was, and its video can be downloaded and replayed (`stillmotion replay`);
    what was half done went on behind its stored step, and a chained job did not make its first stage again;
    every job has the frames of an undisturbed run;
    the same requests with the same idempotency keys make no new job.

Only the command line, HTTP and the SDK are used, and names in the artifact folder, so that the program itself is the
same on both sides of a change. The server runs with one thread (OMP_NUM_THREADS=1): more change the last bits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image
from stillmotion import Client, batch_line
from stillmotion.types import TERMINAL_STATUSES, Job, JobEvent

ROOT: Final = Path(__file__).resolve().parents[1]
MODELS: Final = ("mini-image-to-video", "mini-text-to-video", "mini-frame-interpolation", "mini-multi-view")
SMALL: Final = {"width": 128, "height": 64}
CHAINED_STEPS, WAITING_JOBS, BATCH_ROWS, TRIES = 3, 18, 2, 5
STATE, STAGE, PAIRS = "checkpoint.safetensors", "stage.kept", "pair-*.kept"
"""What the artifact folder of a job that runs may hold: its state, a chained job's first stage and finished pairs."""
ENVIRONMENT: Final = {
    "STILLMOTION_LEASE_S": "30",
    "STILLMOTION_CHECKPOINT_EVERY_S": "0.3",
    "STILLMOTION_PROGRESS_INTERVAL_S": "0",
    "STILLMOTION_QUEUE_LIMIT": "1000",
    # Ten years: a store can be checked long after it was written.
    "STILLMOTION_WAITING_S": "315360000",
    "STILLMOTION_KEPT_S": "315360000",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SERVER_LOG: Final = "server.stderr.txt"
LABEL: Final = "case"
"""The key of a job's metadata that holds its case's name."""


@dataclass(frozen=True)
class Case:
    """One request.

    Args:
        group: `completed`, `half done`, `chained`, `waiting` or `batch`: what it shall be when the server is killed.
        task: of the API.
        settings: fields of the request, but for the pictures.
        images: files in the store, in the order of the request's fields.
    """

    name: str
    group: str
    task: str
    settings: dict[str, Any]
    images: tuple[str, ...] = ()


@dataclass
class Verdict:
    """What became of one job; `faults` says what is wrong, and is empty if nothing is."""

    case: Case
    before: str
    first_step: int | None = None
    faults: list[str] = field(default_factory=list)


def cases() -> list[Case]:
    """The requests: two to be completed, one half done, one chained, many that wait, and a batch."""
    still, seeds = ("still.jpg",), iter(range(100, 200))
    found = [
        Case("still, completed", "completed", "image-to-video", {"num_inference_steps": 2}, still),
        Case("pair, completed", "completed", "frame-interpolation", {}, ("still.jpg", "second.png")),
        Case(
            "still, half done", "half done", "image-to-video", {"num_inference_steps": 80, "solver": "dpmpp-2m"}, still
        ),
        Case(
            "chained", "chained", "image-to-video", {"num_inference_steps": CHAINED_STEPS, "interpolate": True}, still
        ),
        Case(
            "orbit, waiting", "waiting", "multi-view", {"num_inference_steps": 4, "elevation": 5.0, "width": 64}, still
        ),
    ]
    found += [
        Case(
            f"prompt, waiting {index}", "waiting", "text-to-video", {"num_inference_steps": 3, "prompt": prompt(index)}
        )
        for index in range(WAITING_JOBS)
    ]
    found += [
        Case(f"batch row {index}", "batch", "image-to-video", {"num_inference_steps": 2}, still)
        for index in range(BATCH_ROWS)
    ]
    priority = {"half done": "high", "chained": "high", "waiting": "low"}
    for case in found:
        case.settings.update({**SMALL, **case.settings}, seed=next(seeds), metadata={LABEL: case.name})
        if case.group in priority:
            case.settings["priority"] = priority[case.group]
    return found


def prompt(index: int) -> str:
    """One of several."""
    scenes = ("a beach at sunset", "a green forest", "snow on a mountain", "a night sky", "a red desert", "a grey sea")
    return f"{scenes[index % len(scenes)]}; the camera pans to the {'left' if index % 2 else 'right'}"


@dataclass
class Server:
    """`stillmotion serve --deterministic`, of the code of a checkout, on the database and artifacts in a folder."""

    checkout: Path
    folder: Path
    models: Sequence[str]
    url: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it; come back when it is ready.

        Raises:
            SystemExit: it ended instead; the message has its log.
        """
        store = ["--database-url", f"sqlite:///{self.folder}/jobs.db", "--artifacts", str(self.folder / "artifacts")]
        models = [word for model in self.models for word in ("--model", model)]
        output, errors = self.folder / "server.stdout.txt", self.folder / SERVER_LOG
        with output.open("wb") as stdout, errors.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli", "serve", "--deterministic", "--port", "0", *store, *models],
                cwd=self.checkout,
                env=environment(self.checkout),
                stdout=stdout,
                stderr=stderr,
            )
        while "\n" not in output.read_text():
            if self._process.poll() is not None:
                raise SystemExit(f"the server did not start:\n{errors.read_text()}")
            time.sleep(0.1)
        self.url = output.read_text().split()[1]

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def files(self, job_id: str, pattern: str) -> list[Path]:
        """Files of a job in the artifact folder."""
        return sorted((self.folder / "artifacts" / job_id).glob(pattern))


def environment(checkout: Path) -> dict[str, str]:
    """Of a server, so that it imports the code of the checkout."""
    return {**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, (checkout, checkout / "client/src")))}


@contextmanager
def serving(checkout: Path, folder: Path, models: Sequence[str]) -> Iterator[tuple[Server, Client]]:
    """A server, killed at the end whatever happens, and a client of it."""
    server = Server(checkout, folder, models)
    try:
        server.start()
        with Client(server.url, timeout=120) as client:
            yield server, client
    finally:
        server.kill()


def submit(client: Client, store: Path, wanted: Sequence[Case]) -> None:
    """Each case as a job; those of the group `batch` as one batch."""
    for case in wanted:
        images = [store / name for name in case.images]
        settings, key = case.settings, case.name.replace(" ", "-")
        if case.task == "text-to-video":
            client.text_to_video(wait=False, idempotency_key=key, **settings)
        elif case.task == "frame-interpolation":
            client.frame_interpolation(*images, wait=False, idempotency_key=key, **settings)
        elif case.task == "multi-view":
            client.multi_view(*images, wait=False, idempotency_key=key, **settings)
        elif case.group != "batch":
            client.submit(*images, idempotency_key=key, **settings)
    rows = [case for case in wanted if case.group == "batch"]
    if rows:
        lines = [batch_line(case.name, store / case.images[0], task=case.task, **case.settings) for case in rows]
        client.create_batch(lines, idempotency_key="batch")


def jobs_by_case(client: Client) -> dict[str, list[Job]]:
    """Every job that the server has, by the name of its case."""
    found: dict[str, list[Job]] = {}
    for job in client.list():
        found.setdefault(job.metadata.get(LABEL, job.id), []).append(job)
    return found


def wait_for_all(client: Client, names: Sequence[str]) -> dict[str, list[Job]]:
    """Every job, once those of these cases have ended."""
    while True:
        jobs = jobs_by_case(client)
        if all(job.is_terminal for name in names for job in jobs.get(name, ())):
            return jobs
        time.sleep(0.3)


def stored_step(state: bytes) -> int:
    """The step in a stored state: its safetensors tensor `step`, one 64-bit integer."""
    (size,) = struct.unpack_from("<Q", state)
    begin, _ = json.loads(state[8 : 8 + size])["step"]["data_offsets"]
    (step,) = struct.unpack_from("<q", state, 8 + size + begin)
    return int(step)


def write(checkout: Path, store: Path) -> None:
    """Make the store.

    Raises:
        SystemExit: the folder holds something, or the moment to kill was missed TRIES times.
    """
    if store.exists() and any(store.iterdir()):
        raise SystemExit(f"{store} is not empty: name another folder")
    store.mkdir(parents=True, exist_ok=True)
    draw_pictures(checkout / "docs/assets/still.jpg", store)
    wanted = cases()
    with tempfile.TemporaryDirectory() as folder, serving(checkout, Path(folder), MODELS) as (_, client):
        submit(client, store, wanted)
        made = wait_for_all(client, [case.name for case in wanted])
        versions = {model.id: model.version for model in client.models()}
    expected = {name: job.output.frames_sha256 for name, (job,) in made.items() if job.output is not None}
    if missing := [case.name for case in wanted if case.name not in expected]:
        raise SystemExit(f"not completed although undisturbed: {', '.join(missing)}")
    print(f"undisturbed: {len(expected)} jobs completed", flush=True)
    for attempt in range(1, TRIES + 1):
        for name in ("jobs.db", "jobs.db-wal", "jobs.db-shm"):
            (store / name).unlink(missing_ok=True)
        shutil.rmtree(store / "artifacts", ignore_errors=True)
        found = disturbed(checkout, store, wanted)
        if found is not None:
            break
        print(f"try {attempt}: the moment was missed", flush=True)
    else:
        raise SystemExit(f"the moment was missed {TRIES} times; try on a machine that is less busy")
    record = {
        "written_by": commit_of(checkout),
        "models": versions,
        "cases": [{**vars(case), "expected": expected[case.name], **found[case.name]} for case in wanted],
    }
    (store / "store.json").write_text(json.dumps(record, indent=1) + "\n")
    for case in wanted:
        print(f"{case.name:24} {found[case.name]}")


def draw_pictures(still: Path, store: Path) -> None:
    """The still, and a second one as if the camera had moved on."""
    shutil.copyfile(still, store / "still.jpg")
    with Image.open(still) as opened:
        picture = opened.convert("RGB")
    width, height = picture.size
    moved = picture.crop((width // 10, height // 20, width, height - height // 20)).resize((448, 256))
    moved.save(store / "second.png")


def commit_of(checkout: Path) -> str:
    """The checkout's commit, as git abbreviates it."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def disturbed(checkout: Path, store: Path, wanted: Sequence[Case]) -> dict[str, dict[str, Any]] | None:
    """Submit, and kill at the right moment; what each job then was, or None if the moment passed."""
    first = [case for case in wanted if case.group == "completed"]
    order = {"chained": 0, "half done": 1}  # what is to be half done goes before what is to wait
    others = sorted((case for case in wanted if case not in first), key=lambda case: order.get(case.group, 2))
    names = {group: next(case.name for case in wanted if case.group == group) for group in ("half done", "chained")}
    with serving(checkout, store, MODELS) as (server, client):
        submit(client, store, first)
        wait_for_all(client, [case.name for case in first])
        submit(client, store, others)
        ids = {case.name: jobs[0].id for case in wanted if (jobs := jobs_by_case(client)[case.name])}
        while not is_the_moment(server, ids[names["half done"]], ids[names["chained"]]):
            if client.get(ids[names["half done"]]).is_terminal or client.get(ids[names["chained"]]).is_terminal:
                return None
            time.sleep(0.02)
        before = jobs_by_case(client)
        server.kill()
    found = {name: at_the_kill(server, job) for name, (job,) in before.items()}
    statuses = [one["status"] for one in found.values()]
    half, chained = (found[names[group]] for group in ("half done", "chained"))
    right = half["stored_step"] and chained["pairs"] and not found[names["chained"]]["video"]
    return found if right and statuses.count("queued") >= 2 and statuses.count("completed") >= 2 else None


def is_the_moment(server: Server, half_done: str, chained: str) -> bool:
    """Whether a state is stored, and a chained job's first pair."""
    states = server.files(half_done, STATE)
    return bool(states) and stored_step(states[0].read_bytes()) > 2 and bool(server.files(chained, PAIRS))


def at_the_kill(server: Server, job: Job) -> dict[str, Any]:
    """What a killed server left of a job."""
    states = server.files(job.id, STATE)
    return {
        "id": job.id,
        "status": job.status,
        "last_step": job.step,
        "stored_step": stored_step(states[0].read_bytes()) if states else None,
        "first_stage": bool(server.files(job.id, STAGE)),
        "pairs": len(server.files(job.id, PAIRS)),
        "video": bool(server.files(job.id, "video*")),
    }


def judge(case: Case, before: Mapping[str, Any], jobs: Sequence[Job], events: Sequence[JobEvent]) -> Verdict:
    """What became of a case's job.

    Args:
        before: its entry in store.json.
        jobs: those that bear its name, after all have ended.
        events: the whole history of the job.
    """
    verdict = Verdict(case, _state_before(before))
    faults = verdict.faults
    if [job.id for job in jobs] != [before["id"]]:
        faults.append(f"{len(jobs)} jobs, where there was one")
        return verdict
    (job,) = jobs
    endings = [event.event for event in events if event.event in TERMINAL_STATUSES]
    if endings != ["completed"] or job.status != "completed" or events[-1].event != "completed":
        faults.append(f"ended {', '.join(endings) or 'not at all'}" + (f": {job.error.message}" if job.error else ""))
    if [event.id for event in events] != list(range(1, len(events) + 1)):
        faults.append("its history has gaps")
    if job.output is None or job.output.frames_sha256 != before["expected"]:
        faults.append("other frames than undisturbed")
    again = max(index for index, event in enumerate(events) if event.job.status == "queued")
    steps = [event.job.step for event in events[again:] if event.event == "step"]
    verdict.first_step = steps[0] if steps and again else None
    stored = before["stored_step"] or 0
    if case.group == "half done" and (not steps or steps[0] != stored + 1):
        faults.append(f"went on at step {verdict.first_step}, not {stored + 1}")
    if case.group == "chained":
        phases = {event.job.phase for event in events[again + 1 :] if event.job.status == "in_progress"}
        if phases & {"encode", "denoise", "decode"}:
            faults.append("made its first stage again")
        if not steps or steps[0] <= CHAINED_STEPS:
            faults.append(f"went on at step {verdict.first_step}, not behind its first stage's {CHAINED_STEPS}")
    if before["status"] == "completed" and again != 0:
        faults.append("was run again although completed")
    return verdict


def _state_before(before: Mapping[str, Any]) -> str:
    if before["pairs"]:
        return f"{before['status']}, first stage and {before['pairs']} of its pairs stored"
    return (
        f"{before['status']}, step {before['stored_step']} stored" if before["stored_step"] else str(before["status"])
    )


def check(checkout: Path, store: Path, models: Sequence[str]) -> bool:
    """Take the store over, and print what became of it; whether all is as it should be."""
    record = json.loads((store / "store.json").read_text())
    names = Case.__dataclass_fields__
    entries = [(Case(**{name: one[name] for name in names}), one) for one in record["cases"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        shutil.copytree(store, folder, dirs_exist_ok=True)
        with serving(checkout, folder, models) as (_, client):
            faults = [
                f"{model.id} is {model.version} now, and was {record['models'][model.id]}"
                for model in client.models()
                if record["models"].get(model.id) != model.version
            ]
            jobs = wait_for_all(client, [case.name for case, _ in entries])
            verdicts = []
            for case, before in entries:
                events = list(client.stream_events(before["id"]))
                verdicts.append(judge(case, before, jobs.get(case.name, ()), events))
                if events[-1].event == "completed":
                    video = client.download_to(before["id"], folder / f"{before['id']}.mp4")
                    replayed = case.group in ("completed", "chained")
                    verdicts[-1].faults.extend(replay_faults(checkout, video) if replayed else [])
            submit(client, store, [case for case, _ in entries])
            if (count := sum(map(len, jobs_by_case(client).values()))) != len(entries):
                faults.append(f"{count} jobs after the requests were repeated, {len(entries)} before")
        left = [path.name for pattern in (STATE, STAGE, "pair-*") for path in (folder / "artifacts").rglob(pattern)]
        log = (folder / SERVER_LOG).read_text()[len((store / SERVER_LOG).read_text()) :]
        faults += [f"{len(left)} stored states were left behind: {', '.join(sorted(set(left)))}"] if left else []
    print(f"written by {record['written_by']}, taken over by {commit_of(checkout)}")
    print(table(verdicts))
    for fault in faults:
        print(fault)
    right = not faults and not any(verdict.faults for verdict in verdicts)
    if right:
        print(f"all {len(verdicts)} jobs completed once, with the expected frames")
    else:
        print(f"the server's log:\n{log}")
    return right


def replay_faults(checkout: Path, video: Path) -> list[str]:
    """What is wrong with a video made again from its own manifest."""
    command = [sys.executable, "-m", "cli", "replay", str(video), "--json"]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
    if not done.stdout:
        return [f"replay: {done.stderr.strip()}"]
    answer = json.loads(done.stdout)
    return [] if answer["identical"] else ["replay: not identical"]


def table(verdicts: Sequence[Verdict]) -> str:
    """One line a job."""
    lines = [f"{'job':24} {'when its server was killed':52} {'went on at step':16} now"]
    for verdict in verdicts:
        step = "" if verdict.first_step is None else str(verdict.first_step)
        lines.append(f"{verdict.case.name:24} {verdict.before:52} {step:16} {'; '.join(verdict.faults) or 'right'}")
    return "\n".join(lines)


def main() -> None:
    """Write a store, or check one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("store", type=Path)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="the code that serves; this one if left out")
    options = parser.parse_args()
    checkout, store = options.checkout.resolve(), options.store.resolve()
    if options.action == "write":
        write(checkout, store)
    elif not (store / "store.json").exists():
        parser.error(f"{store} has no store.json: write it first")
    elif not check(checkout, store, MODELS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
