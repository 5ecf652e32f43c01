"""Where a round that was begun, and whose worker is gone, can be gone on with: from its last checkpoint in the log.

A checkpoint is stored before the step that names it. Whoever performs the round again gives the steps up to there as
they were recorded, so that events and ids stay what they are, and takes the others. A checkpoint of another manifest
(threads, instruction set, precision, package) is passed over, as the adapter must be what one machine makes of the
round. One that cannot be read is passed over too: then the round is only longer.
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from resia.events import Blobs, Checkpoint, Manifest, StepTrained
from resia.events.errors import BlobError
from resia.replay.state import Training

from .rounds import Saved

ADAPTER_MEDIA = "application/vnd.resia.adapter+safetensors"
OPTIMIZER_MEDIA = "application/vnd.resia.optimizer+safetensors"


class Begun(NamedTuple):
    """`steps` as they stand in the log, from the first to the one after which `saved` was taken."""

    steps: tuple[StepTrained, ...] = ()
    saved: Saved | None = None


def begun(training: Training, number: int, manifest: Manifest, blobs: Blobs) -> Begun:
    """How far round `number` of a training has come; nothing where it begins anew."""
    recorded = {step.step: step for step in training.steps if step.round == number}
    whole: list[StepTrained] = []
    while (step := recorded.get(len(whole))) is not None:
        whole.append(step)
    while whole:
        last = whole[-1]
        if last.checkpoint is not None and last.checkpoint.manifest == manifest:
            with suppress(BlobError):  # the round is begun further back
                adapter, optimizer = blobs.get(last.checkpoint.adapter), blobs.get(last.checkpoint.optimizer)
                return Begun(tuple(whole), Saved(last.step, adapter, optimizer))
        whole.pop()
    return Begun()


def store(saved: Saved, manifest: Manifest, blobs: Blobs) -> Checkpoint:
    """The checkpoint, its bytes durable."""
    adapter, optimizer = blobs.put(saved.adapter, ADAPTER_MEDIA), blobs.put(saved.optimizer, OPTIMIZER_MEDIA)
    return Checkpoint(adapter, optimizer, manifest)
