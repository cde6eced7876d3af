"""A page to look at: what was measured, and every side's clips beside the real one, playing together.

The folder holds index.html and one mp4 a clip; it can be moved or served as it is.

Legend: T frames, H, W pixels.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.errors import DataError
from model.media.video import Frames, encode_video
from training.metrics.inputs import EvalSample
from training.model_card import flatten

PAGE = "index.html"
MOST = 24
"""Inputs shown at most, spread evenly over all."""

_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1280px;margin:2em auto;padding:0 1em;color:#222}
h1{margin-bottom:.1em}.under{color:#555;margin-top:0}h2{margin-top:1.6em}
.row{border-top:1px solid #ddd;padding:.8em 0}.row h3{margin:0 0 .4em;font-size:15px;font-weight:600}
.sides{display:flex;flex-wrap:wrap;gap:10px}.sides figure{margin:0}video{width:232px;border-radius:3px;display:block}
figcaption{font-size:13px;color:#555}figure.model figcaption{color:#111;font-weight:600}
table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left;font-size:14px}
td.n{font-variant-numeric:tabular-nums}button{font:inherit;padding:.2em .8em}
@media (prefers-color-scheme:dark){body{background:#151515;color:#ddd}.under,figcaption{color:#aaa}
figure.model figcaption{color:#fff}.row,td,th{border-color:#333}}
"""
_SCRIPT = """
const all=[...document.querySelectorAll('video')],slow=document.getElementById('speed');
function again(){all.forEach(v=>{v.currentTime=0;v.play()})}
document.getElementById('again').onclick=again;
slow.onchange=()=>all.forEach(v=>v.playbackRate=+slow.value);
all.forEach(v=>v.onended=()=>{if(all.every(w=>w.ended))again()});again();
"""


def write_eval_page(folder: Path, results: dict[str, Any], shown: Sequence[EvalSample]) -> Path:
    """Write the page of an evaluation.

    Args:
        found: what training.evaluate.evaluate returns.
        shown: the clips of all inputs; MOST of them at most are shown.

    Returns:
        index.html.

    Raises:
        DataError: the folder cannot be written.
    """
    fps = int(results["settings"]["fps"])
    selected = [shown[k * len(shown) // min(MOST, len(shown))] for k in range(min(MOST, len(shown)))]
    try:
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        rows = [_row(folder, number, one, fps) for number, one in enumerate(selected)]
        (folder / PAGE).write_text(_page(results, rows, len(shown)), encoding="utf-8")
    except OSError as error:
        raise DataError(f"the page cannot be written to {folder}: {error}; name another folder with --page") from error
    return folder / PAGE


def _page(results: dict[str, Any], rows: list[str], of: int) -> str:
    figure_rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td class='n'>{html.escape(text)}</td></tr>"
        for name, text in flatten(results["figures"])
    )
    how = "".join(
        f"<dt><b>{html.escape(name)}</b></dt><dd>{html.escape(text)}</dd>" for name, text in results["protocol"].items()
    )
    name, version = html.escape(str(results["model"])), html.escape(str(results["version"])[:12])
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{name}, measured</title><style>{_STYLE}</style>
<h1>{name}</h1>
<p class="under">{html.escape(results["task"])}, version {version}, {results["settings"]["steps"]} steps.
{len(rows)} of {of} held-out inputs; figures are over all. Protocol {results["protocol_hash"]}.</p>
<p><button id="again">From the start</button>
<label>Speed <select id="speed"><option value="1">as is</option><option value=".5">half</option>
<option value=".25">a quarter</option></select></label></p>
{"".join(rows)}
<h2>Figures</h2><table>{figure_rows}</table><h2>How each was taken</h2><dl>{how}</dl>
<script>{_SCRIPT}</script></html>
"""


def _row(folder: Path, number: int, one: EvalSample, fps: int) -> str:
    clips = ({} if one.real is None else {"real": one.real}) | dict(one.sides)
    cells = "".join(
        _cell(folder, f"{number:03d}-{side.replace(' ', '-')}", side, clip, fps) for side, clip in clips.items()
    )
    return f"<div class='row'><h3>{html.escape(one.name)}</h3><div class='sides'>{cells}</div></div>\n"


def _cell(folder: Path, name: str, side: str, clip: Frames, fps: int) -> str:
    file = f"clips/{name}.mp4"
    (folder / file).write_bytes(encode_video(clip, fps, "mp4"))
    kind = "model" if side == "model" else "other"
    video = f"<video src='{file}' muted playsinline preload='auto'></video>"
    return f"<figure class='{kind}'>{video}<figcaption>{html.escape(side)}</figcaption></figure>"
