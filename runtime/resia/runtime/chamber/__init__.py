"""The chamber in which kernel files run, as processes of this machine; one page: `docs/kernels.md`.

process.py   implements resia.kernels.ports: spawn, talk against deadlines, judge how it ended
arena.py     the memory that both sides share           inside.py   turns the locks, then obeys resia.kernels.guest
tiers.py     what locks there are on this machine       locks.py    Landlock, seccomp and limits that torch survives
"""

from __future__ import annotations
