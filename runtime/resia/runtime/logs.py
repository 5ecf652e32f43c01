"""What a worker process says: one JSON line for each handled event, on standard output."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logs() -> None:
    """Of this process, from now on; the client's own warnings are left out."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
    )
    logging.getLogger("nats").setLevel(logging.ERROR)
