"""The generated pages of the documentation site, as Markdown: {path in the site: text}."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

WHOLE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "client/README.md": "reference/sdk-readme.md",
}
"""Files of the repository that are pages, and where."""


def cards() -> list[Path]:
    """The model cards of the shipped checkpoints."""
    return sorted((ROOT / "model" / "zoo").glob("*/README.md"))


def sources() -> dict[str, str]:
    """Every page of the site that a file of the repository stands for: {path in the repository: path in the site}."""
    places = {f"model/zoo/{card.parent.name}/README.md": f"reference/models/{card.parent.name}.md" for card in cards()}
    return {**WHOLE, **places}


def title(path: Path) -> str:
    """A page's first heading."""
    found = re.search(r"^# (.+)$", path.read_text(), re.MULTILINE)
    return found[1] if found else path.stem


def cell(text: object) -> str:
    """One line for a table; a bar outside of code is no end of the cell."""
    parts = " ".join(str(text or "").split()).split("`")
    return "`".join(part if number % 2 else part.replace("|", "\\|") for number, part in enumerate(parts))


def rows(head: tuple[str, ...], body: list[tuple[object, ...]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, line))} |" for line in body)]) + "\n"


# ---- HTTP ----


def openapi_document() -> dict[str, Any]:
    """The gateway's OpenAPI document; no engine is needed for it."""
    from typing import cast

    from serving.engine.protocol import Engine
    from serving.gateway import Settings, create_app

    document: dict[str, Any] = create_app(cast(Engine, None), [], Settings()).openapi()
    return document


def http_reference() -> str:
    """Every route with its parameters, bodies and answers, and every schema."""
    document = openapi_document()
    parts = [
        "# HTTP API",
        document["info"].get("description", ""),
        "A running service has the same at `/docs`, to try, and at `/openapi.json`.",
    ]
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation.get("tags", ["other"])[0], []).append(_operation(method, path, operation))
    for tag, operations in by_tag.items():
        parts += [f"## {tag.capitalize()}", *operations]
    parts.append("## Schemas")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts += [f"### {name}", _description(schema), _properties(schema)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"### {method.upper()} {path}", _description(operation)]
    if parameters := operation.get("parameters"):
        lines = [(f"`{one['name']}`", one["in"], kind(one["schema"]), one.get("description", "")) for one in parameters]
        parts.append(rows(("parameter", "in", "type", "what"), lines))
    for content, media in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Body, `{content}`: {kind(media.get('schema', {}))}")
    answers = [
        (
            status,
            ", ".join(kind(media.get("schema", {})) for media in answer.get("content", {}).values()),
            answer.get("description", ""),
        )
        for status, answer in sorted(operation["responses"].items())
    ]
    parts.append(rows(("status", "body", "when"), answers))
    return "\n\n".join(part for part in parts if part)


def _description(schema: dict[str, Any]) -> str:
    """What is said of it, the docstring's sections as plain text."""
    return inspect.cleandoc(schema.get("description", "")).replace("\nArgs:\n", "\n")


def _properties(schema: dict[str, Any]) -> str:
    wanted = set(schema.get("required", []))
    lines = [
        (f"`{name}`" + (" (required)" if name in wanted else ""), kind(one), one.get("description", ""))
        for name, one in schema.get("properties", {}).items()
    ]
    return rows(("field", "type", "what"), lines) if lines else kind(schema)


def kind(schema: dict[str, Any]) -> str:
    """A schema in words, with a link to a named one."""
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(kind(one) for one in schema[several] if one.get("type") != "null"))
    if values := schema.get("enum"):
        return ", ".join(f"`{value}`" for value in values)
    if "const" in schema:
        return f"`{schema['const']}`"
    word = schema.get("type", "any")
    if word == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if schema.get("format") == "binary":
        return "file"
    names = (
        ("minimum", "from {}"),
        ("maximum", "to {}"),
        ("exclusiveMinimum", "above {}"),
        ("maxLength", "up to {} characters"),
    )
    bounds = [form.format(schema[name]) for name, form in names if name in schema]
    return " ".join([word, *bounds])


# ---- the command line ----


def cli_reference() -> str:
    """Every command with its arguments and options."""
    import typer.main

    from cli.main import app

    parts = ["# Command line", "`stillmotion --help` and `stillmotion COMMAND --help` print the same."]
    for name, command in commands(typer.main.get_command(app), "stillmotion"):
        text = inspect.cleandoc(command.help or "").replace("\b", "")
        parts += [f"## {name}", text]
        context = command.make_context(name, [], resilient_parsing=True)
        records = [(one, one.get_help_record(context)) for one in command.params if one.name != "help"]
        arguments = [(f"`{one.name.upper()}`", getattr(one, "help", "")) for one, _ in records if is_argument(one)]
        options = [
            (f"`{record[0]}`", record[1].replace("[", "\\["))
            for one, record in records
            if record and not is_argument(one)
        ]
        if arguments:
            parts.append(rows(("argument", "what"), arguments))
        if options:
            parts.append(rows(("option", "what"), options))
    return "\n\n".join(parts) + "\n"


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command and those below it, with their names as one types them."""
    if hasattr(command, "commands"):
        if command.invoke_without_command and " " in name:
            yield name, command
        for child, below in command.commands.items():
            yield from commands(below, f"{name} {child}")
    else:
        yield name, command


def is_argument(parameter: Any) -> bool:
    """Whether a parameter is an argument, not an option."""
    return bool(parameter.param_type_name == "argument")


# ---- settings, SDK, models, decisions ----


def settings_reference() -> str:
    """The gateway's settings, as environment variables."""
    from serving.gateway import Settings

    lines = []
    for name, field in Settings.model_fields.items():
        default = "" if field.is_required() else field.default
        lines.append(
            (
                f"`STILLMOTION_{name.upper()}`",
                f"`{default}`" if default not in ("", None) else "",
                field.description or "",
            )
        )
    head = "Variables of `stillmotion serve`; some are options too. Sizes in bytes and pixels, times in seconds."
    return f"# Settings\n\n{head}\n\n{rows(('variable', 'default', 'what'), lines)}"


def sdk_reference() -> str:
    """The SDK's modules, by their docstrings."""
    parts = ["# Python SDK", "`pip install ./client`; how to use it is in the [SDK's README](sdk-readme.md)."]
    parts += [f"::: stillmotion.{name}" for name in ("Client", "AsyncClient")]
    parts += ["## Other exports", "::: stillmotion\n    options:\n      members: false\n      show_root_heading: false"]
    parts += [f"::: stillmotion.{name}" for name in ("errors", "types", "webhooks")]
    return "\n\n".join(parts) + "\n"


def models_index() -> str:
    """The shipped checkpoints."""
    lines = [(f"[{card.parent.name}](models/{card.parent.name}.md)", _about(card)) for card in cards()]
    return "# Model cards\n\nThe shipped checkpoints.\n\n" + rows(("checkpoint", "what"), lines)


def _about(card: Path) -> str:
    """The first paragraph below the heading."""
    paragraphs = card.read_text().split("\n\n")
    return paragraphs[1] if len(paragraphs) > 1 else ""


def decisions() -> str:
    """The decision records, in order."""
    records = sorted((ROOT / "docs" / "adr").glob("0*.md"))
    lines = "\n".join(f"- [{title(record)}]({record.name})" for record in records)
    return f"# Decisions\n\nWhat was decided, why, and what it costs.\n\n{lines}\n"


PAGES = {
    "reference/http.md": http_reference,
    "reference/cli.md": cli_reference,
    "reference/settings.md": settings_reference,
    "reference/sdk.md": sdk_reference,
    "reference/models.md": models_index,
    "adr/index.md": decisions,
}
"""Every page that is made from the code: {path in the site: what makes it}."""
