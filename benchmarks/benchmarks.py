"""Makes `benchmarks` a package for a script of this folder that is run by its path, as `python benchmarks/gate.py`."""

from pathlib import Path

__path__ = [str(Path(__file__).parent)]
