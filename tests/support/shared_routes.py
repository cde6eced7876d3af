"""FastAPI's routes built once a process: importing this is enough.

FastAPI builds the routes of an included router anew for each app, at its first request, which takes 0.2 processor
seconds of a test that needs 0.05 otherwise. The routers are the same in every app, so that what was built serves all.
Nothing in a built route belongs to one app but `dependency_overrides`, which no test of ours uses.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import routing
from starlette.routing import BaseRoute

_Included: Final[Any] = routing._IncludedRouter
_build: Final = _Included._build_effective_context
_built: Final[dict[tuple[int, str, str], tuple[BaseRoute, Any]]] = {}
"""By a route's identity and how it is included; beside its route, so that no other route gets its identity."""


def _shared(included: Any, route: BaseRoute) -> Any:
    context = included.include_context
    key = id(route), context.prefix, repr((context.dependencies, context.responses, context.include_in_schema))
    if key not in _built:
        _built[key] = route, _build(included, route)
    return _built[key][1]


_Included._build_effective_context = _shared
