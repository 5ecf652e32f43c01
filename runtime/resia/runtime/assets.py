from __future__ import annotations
import hashlib
from pathlib import Path
def model_digest(folder: Path) -> str:
    return hashlib.sha256((folder/"model.safetensors").read_bytes()).hexdigest()
