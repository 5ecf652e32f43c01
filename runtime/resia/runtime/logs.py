"""What processes log: a worker one JSON line for each handled event, on standard output; a command only warnings, on
standard error, because its own output is read by programs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from resia.events import Logged, Skipped

_FIELDS: tuple[structlog.typing.Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso"),
    structlog.processors.format_exc_info,
)


def configure_command_logs() -> None:
    """Of a command."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # whatever it is by then
    )
    _leave_out_farewells()


def configure_logs() -> None:
    """Of a worker process, from now on, the warnings of libraries too; the client's own are left out."""
    as_json = structlog.processors.JSONRenderer()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        processors=[*_FIELDS, as_json],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    others = logging.StreamHandler(sys.stdout)
    others.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *_FIELDS],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, as_json],
        )
    )
    logging.basicConfig(handlers=[others])  # which leaves what a worker of one's own has set up
    logging.captureWarnings(True)
    logging.getLogger("nats").setLevel(logging.ERROR)
    _leave_out_farewells()


def _leave_out_farewells() -> None:
    """asyncio warns whenever a connection with TLS ends, since the client's protocol answers as without."""
    logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in record.getMessage())


@contextmanager
def lines_about(fact: Logged, iteration: int) -> Iterator[None]:
    """Every line that this task logs, and the threads that it starts: which event of which iteration it is about."""
    about: dict[str, object] = {"iteration": iteration, "sequence": fact.sequence}
    if not isinstance(fact, Skipped):
        about |= {"run": fact.envelope.run, "id": fact.envelope.id, "cause": fact.envelope.cause}
    with structlog.contextvars.bound_contextvars(**about):
        yield
