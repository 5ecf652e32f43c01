"""Facts of a user's own, beside the closed union: one namespace a package, one wire type a class.

    alerts = Namespace("alerts")

    @alerts.event("regression-found")
    class RegressionFound(msgspec.Struct, frozen=True): ...

gives the wire type `alerts_regression-found`. The fold counts such a message and lets it change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import msgspec

from .catalogue import NAMES, TYPES, version_of
from .errors import UnknownName, UsageError

_NAMESPACE = re.compile(r"[a-z][a-z0-9-]{0,30}")
_CUSTOM = re.compile(r"[a-z][a-z0-9-]{0,30}_[a-z][a-z0-9-]{0,60}")
S = TypeVar("S", bound=msgspec.Struct)


class CustomType(NamedTuple):
    """A registered class with its permanent wire type and version."""

    name: str
    version: int
    cls: type[msgspec.Struct]


CUSTOM: dict[str, CustomType] = {}
_BY_CLASS: dict[type[msgspec.Struct], CustomType] = {}
_CORE: dict[type[msgspec.Struct], str] = {TYPES[name]: name for name in TYPES}


class Namespace:
    """A prefix for wire types that no other package uses; UsageError for one that can be no prefix."""

    def __init__(self, name: str) -> None:
        if not _NAMESPACE.fullmatch(name):
            raise UsageError(f"namespace '{name[:80]}' cannot be used: take small letters, digits and '-', at most 31")
        self.name = name

    def event(self, kind: str, version: int = 1) -> Callable[[type[S]], type[S]]:
        """Register a frozen struct as the wire type `<namespace>_<kind>`, such as 'regression-found'."""
        name = f"{self.name}_{kind}"
        if not is_custom(name):
            raise UsageError(f"event type '{kind[:80]}' cannot be used: take small letters, digits and '-', at most 61")

        def register(cls: type[S]) -> type[S]:
            if not (isinstance(cls, type) and issubclass(cls, msgspec.Struct) and cls.__struct_config__.frozen):
                raise UsageError(f"event type '{name}' is no fact: declare a class as X(msgspec.Struct, frozen=True)")
            known = CUSTOM.get(name)
            if known is not None and known.cls.__qualname__ != cls.__qualname__:
                raise UsageError(f"event type '{name}' is {known.cls.__qualname__}'s already: take another name")
            CUSTOM[name] = _BY_CLASS[cls] = CustomType(name, version, cls)
            return cls

        return register


def is_custom(name: str) -> bool:
    """Whether `name` has the form of a custom wire type: it may be one that this process does not know."""
    return _CUSTOM.fullmatch(name) is not None


def wire_type(cls: type[msgspec.Struct]) -> tuple[str, int]:
    """Wire type and version of a core or registered class; UnknownName for any other."""
    core = _CORE.get(cls)
    if core is not None:
        return core, version_of(core)
    if cls in _BY_CLASS:
        return _BY_CLASS[cls].name, _BY_CLASS[cls].version
    raise UnknownName("event class", cls.__qualname__, [c.__qualname__ for c in (*NAMES, *_BY_CLASS)])


def check_known(name: str) -> str:
    """`name` itself when it is a core type or may be a custom one; UnknownName with the nearest otherwise.

    A custom type may belong to a package that this process does not have. A core type misspelt with `_` is none.
    """
    if name in TYPES or name in CUSTOM or (is_custom(name) and name.replace("_", "-") not in TYPES):
        return name
    raise UnknownName("event type", name, [*TYPES, *CUSTOM])
