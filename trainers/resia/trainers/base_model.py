"""Loading the frozen base: a folder as transformers saves it, onto one device, in the precision that is asked for.

A base whose experts are stored as MXFP4 (gpt-oss) is unpacked while it is read, because the packed kernels have no
backward pass: transformers calls such a model not trainable. It then takes the room of a bfloat16 model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from resia.events.errors import TrainerError, boundary


def load_base(model_dir: Path, dtype: Literal["float32", "bfloat16"]) -> Any:
    """The causal language model in `model_dir`. Raises TrainerError when it cannot be loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config

    with boundary(TrainerError, f"the base model in {model_dir.name} cannot be loaded"):
        config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
        stored = getattr(config, "quantization_config", None) or {}
        unpacked = (
            {"quantization_config": Mxfp4Config(dequantize=True)} if stored.get("quant_method") == "mxfp4" else {}
        )
        return AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, dtype), local_files_only=True, **unpacked
        )
