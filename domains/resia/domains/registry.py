"""Domains by name: built in, of any installed package that declares the entry point group `resia.domains`, or a file.

A factory is a callable with an attribute `Options`, a frozen msgspec Struct; it takes one of them and returns a Domain.
An entry point may name a module of three functions instead, as a file of a user's own has them (`simple`). A domain's
module is imported only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Literal, Protocol, cast, get_args, get_origin

import msgspec

from resia.domains.base import Domain, Stepwise, Tooled
from resia.domains.benched import Benched
from resia.domains.files import is_file, problem_in, problem_of
from resia.domains.programs import Programmed
from resia.events.errors import UnknownName, UsageError

GROUP = "resia.domains"
BUILT_IN: Mapping[str, tuple[str, str]] = {
    "denoising": ("resia.domains.denoising.program_domain", "denoising"),
    "lawbench": ("resia.domains.lawbench.domain", "LawBench"),
    "trimul": ("resia.domains.trimul.forms", "FORMS"),
}


class Factory(Protocol):
    """What makes a domain. Raises UsageError for options it cannot use."""

    Options: type[msgspec.Struct]

    def __call__(self, options: Any, /) -> Domain: ...


def domain_names() -> tuple[str, ...]:
    """Every name that `load_domain` knows, sorted."""
    return tuple(sorted({*BUILT_IN, *_plug_ins()}))


def load_domain(name: str, options: Mapping[str, object]) -> Domain:
    """Build a domain; a name that ends in .py is a file. A built-in name cannot be taken over by a plug-in.

    Raises UnknownName for a domain or an option that does not exist, UsageError for an option's value.
    """
    factory = _factory(name)
    known = factory.Options.__struct_fields__
    for option in options:
        if option not in known:
            raise UnknownName(f"option of the {name} domain", option, known)
    return _whole(name, factory(_checked(name, factory.Options, options)))


def _whole(name: str, domain: Domain) -> Domain:
    """`domain`, if it has all that the agents will ask of it."""
    lacking = [member for member in vars(Domain) if not member.startswith("_") and not hasattr(domain, member)]
    if lacking:
        raise UsageError(f"domain '{name}' has no {', '.join(lacking)}: see resia.domains.base.Domain")
    if domain.spec.steps > 1 and not isinstance(domain, Stepwise):
        steps = domain.spec.steps
        raise UsageError(f"domain '{name}' takes {steps} answers a rollout, so it needs observe and score_steps")
    if domain.spec.steps > 1 and isinstance(domain, Programmed):
        raise UsageError(f"domain '{name}' takes programs, so its rollouts have one answer: set steps to 1")
    _check_tools(name, domain)
    return domain


def _check_tools(name: str, domain: Domain) -> None:
    """Tools are called by their names, and what they speak of is an argument of the answer."""
    spec, seen = domain.spec, {domain.spec.tool}
    judged = isinstance(domain, Benched | Programmed)  # and who judges its answers gives the verdicts
    called = [tool for tool in spec.tools if not (judged and tool.gives == "verdict")]
    if called and not isinstance(domain, Tooled):
        raise UsageError(f"domain '{name}' lists the tool {called[0].name}, so it needs call")
    for tool in spec.tools:
        if not tool.name.isidentifier() or tool.name in seen:
            raise UsageError(
                f"domain '{name}' lists a tool '{tool.name}': give each a name of its own, as of a function"
            )
        if tool.gives != "text" and tool.parameter not in {p.name for p in spec.parameters}:
            raise UsageError(
                f"tool {tool.name} of domain '{name}' gives values of '{tool.parameter}', which no answer has"
            )
        seen.add(tool.name)


def _checked(name: str, kind: type[msgspec.Struct], options: Mapping[str, object]) -> msgspec.Struct:
    try:
        return msgspec.convert(dict(options), kind)
    except msgspec.ValidationError as cause:
        why, _, place = str(cause).partition(" - at ")
        option = place.strip("`").removeprefix("$.")
        if option not in options:
            raise UsageError(f"the {name} domain cannot be built from these options: {why}") from cause
        said = _choices(kind, option) or f"{why[0].lower()}{why[1:]}"
        raise UsageError(f"option {option} of the {name} domain is {options[option]!r}: {said}") from cause


def _choices(kind: type[msgspec.Struct], option: str) -> str:
    """What the option may be, where it is one of a few words."""
    types = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    words = get_args(types[option]) if get_origin(types.get(option)) is Literal else ()
    return f"choose from {', '.join(filter(None, words))}" if words else ""  # an empty word is to leave it out


def _factory(name: str) -> Factory:
    if is_file(name):
        return problem_in(name)
    if name in BUILT_IN:
        return _built_in(name)
    plug_ins = _plug_ins()
    if name not in plug_ins:
        raise UnknownName("domain", name, domain_names())
    try:
        loaded = plug_ins[name].load()
    except Exception as cause:  # whatever another package's module raises
        why = f"{type(cause).__name__}: {cause}"
        raise UsageError(f"domain '{name}' of the package {plug_ins[name].value} cannot be imported: {why}") from cause
    if isinstance(loaded, ModuleType):
        return problem_of(loaded)
    if not isinstance(getattr(loaded, "Options", None), type):
        raise UsageError(
            f"domain '{name}' of the package {plug_ins[name].value} has no Options: name a msgspec Struct so"
        )
    return cast(Factory, loaded)


def _built_in(name: str) -> Factory:
    module, attribute = BUILT_IN[name]
    try:
        return cast(Factory, getattr(import_module(module), attribute))
    except ImportError as missing:
        raise UsageError(f"domain '{name}' cannot be imported ({missing}): pip install 'resia[local]'") from missing


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
