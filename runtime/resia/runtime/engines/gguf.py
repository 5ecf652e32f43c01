"""Convert a GGUF file to a transformers folder: `python -m resia.runtime.engines.gguf FILE.gguf FOLDER`.

A program of its own, so that what asks for a conversion never loads torch. Weights are written in bfloat16, the
precision in which such models were trained; a float32 engine therefore starts from exactly the same numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and chat template of `gguf` into `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # Dequantised in float32 and rounded once.
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The weights are no longer quantised, and saving refuses to believe it while these say otherwise.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(argv: list[str]) -> int:
    convert(Path(argv[0]), Path(argv[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
