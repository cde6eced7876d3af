"""Hooks of mkdocs: pages that are generated at the build, and links from the repository's files to the site's pages.

Nothing generated is committed: the README becomes the home page, benchmarks/RESULTS.md and CHANGELOG.md pages of their
own; the references come from the OpenAPI document, the command line's options, the gateway's settings, the SDK's
docstrings and the model cards. A link to a file of the repository that is no page of the site becomes its name; one to
a file that does not exist fails the build (`mkdocs build --strict`).
"""

from __future__ import annotations

import logging
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "client" / "src"), str(Path(__file__).parent)]

import pages  # noqa: E402 - found beside this file, which mkdocs loads by its path

_log = logging.getLogger("mkdocs.hooks.stillmotion")  # a warning below "mkdocs" fails a strict build
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"^(```.*?^```|(?: {4}|\t).*?$)|(`[^`\n]*`)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for source, target in pages.sources().items():
        text = relink((ROOT / source).read_text(), source, target)
        files.append(File.generated(config, target, content=text))
    for target, make in pages.PAGES.items():
        files.append(File.generated(config, target, content=make()))
    for picture in sorted((ROOT / "model" / "zoo").glob("*/*.png")):
        name = f"reference/models/{picture.parent.name}-{picture.name}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links of pages below docs/ to pages of the site; generated ones were pointed when they were made."""
    if page.file.generated_by:
        return markdown
    return relink(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def relink(text: str, source: str, target: str) -> str:
    """The same text with each relative link made for a page at `target` of the site.

    Args:
        text: Markdown.
        source: where it lies in the repository; links in it are relative to that.
        target: where it will lie in the site.
    """

    def change(match: re.Match[str]) -> str:
        image, words, link = match.groups()
        if re.match(r"[a-z]+:|#|/", link):
            return match[0]
        path, _, anchor = link.partition("#")
        named = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        found = place(named)
        if found is None:
            if not (ROOT / named).exists():
                _log.warning("%s links to %s, which does not exist", source, link)
            return words
        relative = posixpath.relpath(found, posixpath.dirname(target) or ".")
        return f"{image}[{words}]({relative}{'#' + anchor if anchor else ''})"

    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [LINK.sub(change, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(change, text[end:])])


def place(named: str) -> str | None:
    """Where a file of the repository stands in the site; None for one that does not."""
    known = pages.sources()
    if named in known:
        return known[named]
    if named.startswith("model/zoo/") and named.endswith(".png"):
        _, _, model, name = named.split("/")
        return f"reference/models/{model}-{name}"
    if named == "docs/adr":
        return "adr/index.md"
    inside = named.removeprefix("docs/")
    if inside in {*pages.PAGES, *known.values()}:
        return inside
    return inside if named.startswith("docs/") and (ROOT / named).is_file() else None
