"""The trimul domain in its forms: which answers it takes, and who judges them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from resia.domains.base import Domain
from resia.events import KernelProtocol, Split
from resia.events.errors import UsageError

from .benched import Kernels
from .domain import TriMul, TriMulOptions
from .kernel_form import bundled, template


class FormOptions(TriMulOptions, frozen=True, forbid_unknown_fields=True):
    """`form`: an answer is a template's arguments (`launch`) or a whole kernel file (`source`). `judge`: who times it,
    the Task process (`here`: the bundled template alone) or the kernel-bench; empty for the form's own. `template`: a
    kernel file with CHOICES, the bundled one by default. `suite` and `protocol` are the bench's."""

    form: Literal["launch", "source"] = "launch"
    judge: Literal["", "here", "bench"] = ""
    template: str = ""
    suite: Literal["smoke", "small", "full"] = "small"
    protocol: KernelProtocol = "strict"


class Forms:
    """Makes the domain; see `registry.Factory`."""

    Options = FormOptions

    def __call__(self, options: FormOptions, /) -> Domain:
        """Raises UsageError for options that do not go together."""
        return _made(options)


FORMS = Forms()


def _made(options: FormOptions) -> Domain:
    judge = options.judge or ("bench" if options.form == "source" or options.template else "here")
    if judge == "here" and options.form == "source":
        raise UsageError("a kernel's source is judged by the bench alone: leave judge out, or take judge=bench")
    if judge == "here" and options.template:
        raise UsageError(
            f"template {options.template} is judged by the bench alone: leave judge out, or take judge=bench"
        )
    if options.form == "source" and options.template:
        raise UsageError(f"form source takes no template, and template is {options.template}: leave one of them out")
    if judge == "here":
        names = TriMulOptions.__struct_fields__
        return TriMul(TriMulOptions(**{name: getattr(options, name) for name in names}))
    sizes: dict[Split, int] = {
        "search": options.search_items,
        "validation": options.validation_items,
        "test": options.test_items,
    }
    chosen = None
    if options.form == "launch":
        chosen = template(Path(options.template)) if options.template else bundled()
    return Kernels(sizes, options.suite, options.protocol, chosen)
