"""What is said to a chamber's fork server beside `sandbox.wire`: make a guest of these two descriptors."""

from __future__ import annotations

import struct

SPAWN = b"S"
SPAWNED = struct.Struct("!i")  # the guest's process id
