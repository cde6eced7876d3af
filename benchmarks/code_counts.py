"""Counts of the code: files, short files, import cycles, unclear identifiers, checks by task outside the task table.

    python -m benchmarks.code_counts [CHECKOUT] [--list] [--json FILE]

Reads the sources of any checkout (this one if none is named) and imports none of them, so that two states of the code
can be compared by the same rules. Product files are the Python files of model, training, export, serving, cli and
client/src. Counted:

    product files         and their lines; and, as a second figure, all Python files outside tests (with benchmarks)
    short files           under 60 lines, each with why it stands alone (see `reason`)
    import cycles         groups of modules that import each other, whether at import time, inside a function or under
                          TYPE_CHECKING; and those among them that the interpreter meets at import time
    identifiers           names that are, or have as one of their words, `told` or `asked`; strings and comments do not
                          count, so stored and sent keys do not
    checks by task        places outside the task table that compare with a task (its name or its spec), or ask
                          isinstance of a task's settings or of an encoder; and, apart from them, tables keyed by task

--list names every file, cycle, identifier and place.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = ("model", "training", "export", "serving", "cli", "client/src/stillmotion")
SHORT_LINES: Final = 60
UNCLEAR: Final = ("told", "asked")
TORCH: Final = ("torch", "diffusers", "transformers", "safetensors.torch", "accelerate")
TASK_TABLE: Final = ("model/tasks.py", "model/tasks/", "model/params.py")
ENCODERS: Final = ("model/encoders.py", "model/conditioners.py")
"""Where the task table and the union of encoders stand, now and before they were moved."""
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
Graph = Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a product file, and what stands there."""

    path: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class ShortFile:
    """A file of few lines, and why it is one of its own."""

    path: str
    lines: int
    reason: str


@dataclass(frozen=True)
class Source:
    """One product file.

    Args:
        path: in the checkout, with slashes.
        module: as it is imported.
        text: its source.
    """

    path: str
    module: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, self.path)

    @property
    def lines(self) -> int:
        """Lines of the file, as `wc -l` counts them."""
        return self.text.count("\n")

    def place(self, node: ast.expr | ast.stmt | ast.pattern) -> Place:
        """Where a node of its tree is."""
        return Place(self.path, node.lineno, self.text.splitlines()[node.lineno - 1].strip())


def product_sources(checkout: Path) -> list[Source]:
    """The product files of a checkout, by path.

    Raises:
        FileNotFoundError: the folder is no checkout of this project.
    """
    sources = []
    for package in PACKAGES:
        folder = checkout / package
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not there: name the root of a checkout")
        for path in sorted(folder.rglob("*.py")):
            parts = list(path.relative_to(folder.parent).with_suffix("").parts)
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources.append(Source(path.relative_to(checkout).as_posix(), module, path.read_text(encoding="utf-8")))
    return sources


def imports(source: Source, modules: frozenset[str], *, at_import_time: bool = False) -> frozenset[str]:
    """Modules that a file imports: those of `modules` whole, others by their full name as written.

    Args:
        at_import_time: leave out what stands in a function or under `if TYPE_CHECKING`.
    """
    found: set[str] = set()
    for node in _statements(source.tree, at_import_time=at_import_time):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in modules else node.module)
    return frozenset(found - {source.module})


def _statements(node: ast.AST, *, at_import_time: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_import_time and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import_time and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for other in child.orelse:
                yield from (other, *_statements(other, at_import_time=True))
            continue
        yield child
        yield from _statements(child, at_import_time=at_import_time)


def import_graph(sources: list[Source], *, at_import_time: bool = False) -> Graph:
    """Module -> the modules it imports, both product files or not."""
    modules = frozenset(source.module for source in sources)
    return {source.module: imports(source, modules, at_import_time=at_import_time) for source in sources}


def reachable(graph: Graph, start: str) -> set[str]:
    """Everything that a module imports, directly or through others; itself only if it lies on a cycle."""
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting.extend(graph.get(module, ()))
    return reached


def cycles(graph: Graph) -> list[list[str]]:
    """The strongly connected components of more than one module."""
    closure = {module: reachable(graph, module) for module in graph}
    groups = {
        frozenset(other for other in graph if other in closure[module] and module in closure[other]) for module in graph
    }
    return sorted(sorted(group) for group in groups if len(group) > 1)


def short_files(sources: list[Source]) -> list[ShortFile]:
    """Files under SHORT_LINES, with the reason for each."""
    graph = import_graph(sources)
    users = {
        source.module: sorted(module for module, imported in graph.items() if source.module in imported)
        for source in sources
    }
    needs_torch = {module for module in graph if any(_is_torch(name) for name in reachable(graph, module))}
    return [
        ShortFile(source.path, source.lines, reason(source, users[source.module], needs_torch))
        for source in sources
        if source.lines < SHORT_LINES
    ]


def _is_torch(module: str) -> bool:
    return module.startswith(tuple(f"{name}." for name in TORCH)) or module in TORCH


def reason(source: Source, users: list[str], needs_torch: set[str]) -> str:
    """Why a short file stands alone: what kind of file it is, or who imports it; "used by" one module is no reason."""
    name = source.path.rpartition("/")[2]
    if name in ("__init__.py", "__main__.py"):
        return "a package's face" if name == "__init__.py" else "an entry point"
    if "/routes/" in source.path:
        return "a route"
    if "/migrations/" in source.path:
        return "a migration"
    if source.path.startswith("cli/"):
        return "a command or what commands share, imported only when it runs"
    if "/recipes/" in source.path:
        return "a recipe"
    if source.path.startswith("training/objectives/"):
        return "an objective, or one task's examples: a file each"
    if source.path.startswith("client/"):
        return "the SDK's"
    if source.module not in needs_torch and users and all(user in needs_torch for user in users):
        return f"free of torch, its users are not: {', '.join(users)}"
    if len(users) >= 2:
        return f"shared by {', '.join(users)}" if len(users) == 2 else f"shared by {len(users)} modules"
    return f"used by {', '.join(users) or 'nothing of the product'}"


def unclear_identifiers(sources: list[Source]) -> list[Place]:
    """Every token that is a name and one of whose words is in UNCLEAR; the text is the name."""
    found = []
    for source in sources:
        for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
            words = [word.lower() for word in _WORD.findall(token.string)] if token.type == tokenize.NAME else []
            if any(word in UNCLEAR for word in words):
                found.append(Place(source.path, token.start[0], token.string))
    return found


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a check by task is known by.

    Args:
        names: of tasks: "image-to-video" and the others.
        specs: constants that are bound to a TaskSpec.
        settings: classes of a task's settings.
        encoders: classes of encoders.
    """

    names: frozenset[str]
    specs: frozenset[str]
    settings: frozenset[str]
    encoders: frozenset[str]


def vocabulary(sources: list[Source]) -> Vocabulary:
    """Read the task table's own words from the sources.

    Raises:
        ValueError: one of the four cannot be found, so no count would mean anything.
    """
    names, specs, settings, encoders = set[str](), set[str](), set[str](), set[str]()
    for source in sources:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Assign | ast.AnnAssign) and _is_call_of(node.value, "TaskSpec"):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                specs.update(target.id for target in targets if isinstance(target, ast.Name))
            if isinstance(node, ast.Call) and _is_call_of(node, "TaskSpec"):
                settings.update(
                    word.value.id for word in node.keywords if word.arg == "params" and isinstance(word.value, ast.Name)
                )
                given = [word.value for word in node.keywords if word.arg == "name"] or node.args[:1]
                names.update(str(value.value) for value in given if isinstance(value, ast.Constant))
        if source.path.startswith(TASK_TABLE) or source.path in ENCODERS:
            for alias, members in _unions(source.tree):
                if alias == "Params":
                    settings.update(members)
                elif source.path in ENCODERS:
                    encoders.update(members)
    found = Vocabulary(*(frozenset(words) for words in (names, specs, settings, encoders)))
    for part, words in asdict(found).items():
        if not words:
            raise ValueError(f"the sources' {part} were not found: correct TASK_TABLE or ENCODERS of this program")
    return found


def _is_call_of(node: ast.expr | None, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _unions(tree: ast.Module) -> Iterator[tuple[str, set[str]]]:
    """Aliases of a module that are `A | B | ...` of plain names."""
    for node in tree.body:
        value: ast.expr | None = None
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target, value = (node.targets[0] if isinstance(node, ast.Assign) else node.target), node.value
        elif hasattr(ast, "TypeAlias") and isinstance(node, ast.TypeAlias):
            target, value = node.name, node.value
        if isinstance(value, ast.BinOp) and isinstance(target, ast.Name):
            yield target.id, {name.id for name in ast.walk(value) if isinstance(name, ast.Name)}


def task_checks(sources: list[Source], words: Vocabulary) -> tuple[list[Place], list[Place]]:
    """Checks by task outside the task table; and tables keyed by task there, which are data more than checks."""
    checks, tables = [], []
    for source in sources:
        if source.path.startswith(TASK_TABLE):
            continue
        groups = set(_task_collections(source.tree, words))
        for node in ast.walk(source.tree):
            if _is_check(node, words, groups):
                assert isinstance(node, ast.expr | ast.pattern)
                checks.append(source.place(node))
            elif isinstance(node, ast.Dict) and any(key is not None and _is_task(key, words) for key in node.keys):
                tables.append(source.place(node))
    return checks, tables


def _task_collections(tree: ast.Module, words: Vocabulary) -> Iterator[str]:
    """Constants of the module that are a tuple, a list or a set of tasks."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and _has_task(node.value, words) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id


def _has_task(node: ast.expr, words: Vocabulary) -> bool:
    return isinstance(node, ast.Tuple | ast.List | ast.Set) and any(_is_task(one, words) for one in node.elts)


def _is_task(node: ast.expr, words: Vocabulary) -> bool:
    """A task's name, its spec, or the spec's `.name`."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value in words.names
    if isinstance(node, ast.Attribute):
        return node.attr in words.specs or _is_task(node.value, words)
    return isinstance(node, ast.Name) and node.id in words.specs


def _is_check(node: ast.AST, words: Vocabulary, groups: set[str]) -> bool:
    classes = words.settings | words.encoders
    match node:
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
            in_group = any(isinstance(side, ast.Name) and side.id in groups for side in others)
            return in_group or any(_is_task(side, words) or _has_task(side, words) for side in sides)
        case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kind]):
            return any(isinstance(name, ast.Name) and name.id in classes for name in ast.walk(kind))
        case ast.MatchClass(cls=ast.Name(id=name)):
            return name in classes
        case ast.MatchValue(value=value):
            return _is_task(value, words)
        case _:
            return False


def counts(checkout: Path) -> dict[str, Any]:
    """Every count of a checkout, with what was counted."""
    sources = product_sources(checkout)
    lines = sorted(source.lines for source in sources)
    unclear = unclear_identifiers(sources)
    checks, tables = task_checks(sources, vocabulary(sources))
    all_imports, first_imports = (cycles(import_graph(sources, at_import_time=flag)) for flag in (False, True))
    short = short_files(sources)
    exact = Counter(place.text for place in unclear)
    return {
        "product_files": len(sources),
        "files_with_benchmarks": len(sources) + len(list((checkout / "benchmarks").rglob("*.py"))),
        "product_lines": sum(lines),
        "lines_per_file": {"mean": round(sum(lines) / len(lines), 1), "median": lines[len(lines) // 2]},
        "short_files": len(short),
        "short_files_without_package_faces": sum(not one.path.endswith("__init__.py") for one in short),
        "import_cycles": len(all_imports),
        "import_cycles_at_import_time": len(first_imports),
        "identifiers": {word: exact[word] for word in UNCLEAR},
        "identifiers_with_the_word": {
            word: sum(count for name, count in exact.items() if word in _words(name)) for word in UNCLEAR
        },
        "checks_by_task": len(checks),
        "tables_by_task": len(tables),
        "listed": {
            "short_files": [asdict(one) for one in sorted(short, key=lambda one: one.path)],
            "import_cycles": all_imports,
            "import_cycles_at_import_time": first_imports,
            "identifiers": dict(exact.most_common()),
            "identifier_places": [asdict(place) for place in unclear],
            "checks_by_task": [asdict(place) for place in checks],
            "tables_by_task": [asdict(place) for place in tables],
        },
    }


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def printed(found: dict[str, Any], *, everything: bool) -> str:
    """The counts as text, one a line; with `everything`, what was counted below them."""
    lines = [f"{name:36} {json.dumps(value)}" for name, value in found.items() if name != "listed"]
    if everything:
        listed = found["listed"]
        lines += ["", f"under {SHORT_LINES} lines:"]
        lines += [f"  {one['lines']:3}  {one['path']:56} {one['reason']}" for one in listed["short_files"]]
        lines += ["", "import cycles:", *(f"  {' <-> '.join(group)}" for group in listed["import_cycles"])]
        for name in ("identifier_places", "checks_by_task", "tables_by_task"):
            lines += ["", f"{name.replace('_', ' ')}:"]
            lines += [f"  {one['path']}:{one['line']}  {one['text']}" for one in listed[name]]
    return "\n".join(lines)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, nargs="?", default=Path(__file__).resolve().parents[1])
    parser.add_argument("--list", action="store_true", help="name what was counted")
    parser.add_argument("--json", type=Path, help="write counts and lists to this file")
    options = parser.parse_args()
    try:
        found = counts(options.checkout)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(printed(found, everything=options.list))


if __name__ == "__main__":
    main()
