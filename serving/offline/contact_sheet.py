"""The contact sheet: pages of thumbnails that play when pointed at, and the failures with their reasons.

Plain HTML beside the videos, with relative links: it opens from a disk, from an object store or from any web server.
"""

from __future__ import annotations

import html
import json
from itertools import count

from serving.offline.output import Output
from serving.offline.result_log import Result, ResultLog

_PAGE = 500
_STYLE = """
:root{color-scheme:dark}body{margin:0;background:#16181c;color:#c8ccd4;font:14px/1.4 system-ui,sans-serif}
header{position:sticky;top:0;background:#16181cee;padding:10px 16px;display:flex;gap:16px;align-items:baseline;
z-index:1;flex-wrap:wrap}h1{font-size:16px;margin:0;color:#fff}a{color:#8ab4f8}.bad{color:#f28b82}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:12px;padding:0 16px 24px}
figure{margin:0;background:#1f2228;border-radius:6px;overflow:hidden}
video,img{display:block;width:100%;height:auto;background:#000}
figcaption{padding:6px 8px;overflow-wrap:anywhere;font-size:12px}figcaption b{color:#fff;font-weight:600}
.failed{border:1px solid #f28b82}.failed figcaption{padding:12px}
"""
_SCRIPT = """
for(const v of document.querySelectorAll('video')){
v.addEventListener('pointerenter',()=>v.play());
v.addEventListener('pointerleave',()=>{v.pause();v.currentTime=0;v.load()});
v.addEventListener('click',()=>window.open(v.src))}
"""


def write_pages(log: ResultLog, output: Output, mark: str) -> tuple[str, ...]:
    """Write the pages, `index.html` first; their names. Rows are in the manifest's order."""
    pages = max(1, -(-len(log) // _PAGE))
    names = tuple(f"index{mark}{'' if number == 1 else f'-page-{number}'}.html" for number in range(1, pages + 1))
    title = f"{log.counts['completed']} videos"
    if log.counts["failed"]:
        title += f", {log.counts['failed']} failed"
    for number, results in zip(count(), [[]] if not len(log) else log.pages(_PAGE), strict=False):
        output.put(names[number], _page(results, title, names, number).encode())
    return names


def _page(results: list[Result], title: str, names: tuple[str, ...], number: int) -> str:
    links = " ".join(
        f"<b>{at + 1}</b>" if at == number else f'<a href="{name}">{at + 1}</a>'
        for at, name in enumerate(names)
        if at in (0, len(names) - 1) or abs(at - number) <= 3
    )
    pages = f"<span>page {links}</span>" if len(names) > 1 else ""
    body = "\n".join(_completed(one) if one.status == "completed" else _failed(one) for one in results)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<header><h1>{title}</h1>{pages}<span>point at one to play it</span></header>"
        f"<main>\n{body}\n</main><script>{_SCRIPT}</script></body></html>\n"
    )


def _completed(result: Result) -> str:
    size = f'width="{result.width}" height="{result.height}"'
    if result.video.endswith(".gif"):
        moving = f'<img src="{result.video}" {size} loading="lazy" alt="">'
    else:
        moving = (
            f'<video src="{result.video}" poster="{result.thumbnail}" {size} preload="none" muted loop playsinline>'
            "</video>"
        )
    prompt = json.loads(result.params).get("prompt", "")
    lines = [f"<b>{html.escape(result.id)}</b> row {result.row}", html.escape(f"{result.model}, seed {result.seed}")]
    lines += [html.escape(str(one)) for one in json.loads(result.pictures) if one]
    if prompt:
        lines.append(html.escape(prompt))
    if result.degraded:
        lines.append('<span class="bad">degraded: decoded in smaller chunks for want of memory</span>')
    return f"<figure>{moving}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"


def _failed(result: Result) -> str:
    column = f" ({html.escape(result.error_column)})" if result.error_column else ""
    return (
        f'<figure class="failed"><figcaption><b>row {result.row}</b>{column}<br>'
        f'<span class="bad">{html.escape(result.error_code)}</span><br>{html.escape(result.error_message)}'
        "</figcaption></figure>"
    )
