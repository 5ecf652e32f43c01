"""A model of 400k parameters that has been taught, in seconds, to answer the denoising task with a valid line.

It knows the form and nothing else: which settings score well it has to find out. Enough for a run end to end.
`python tests/tiny_agent.py` teaches it again, for when the task's text or the tiny model changes.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from resia.agents.episode import chat
from resia.agents.proposing import first_harness
from resia.domains.base import Domain
from resia.runtime.engines.tiny import build_tiny_model

STEPS, BATCH, LEARNING_RATE = 1000, 6, 3e-3
KEPT = Path(__file__).parent / "data" / "taught.safetensors"


def build(folder: Path, domain: Domain, seed: int = 0) -> Path:
    """The taught model as a folder that the engine loads."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    build_tiny_model(folder, seed, context=4096)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    engine = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    draw = random.Random(seed)
    slower = torch.optim.lr_scheduler.LinearLR(engine, 1.0, 0.02, STEPS)
    for _ in range(STEPS):
        tokens, labels = _batch(tokenizer, domain, draw)
        loss = model(input_ids=tokens, labels=labels).loss
        engine.zero_grad()
        loss.backward()
        engine.step()
        slower.step()
    model.save_pretrained(folder)
    return folder


def keep(folder: Path) -> None:
    """Store the taught weights in bfloat16, 0.7 MB, because teaching takes minutes."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    KEPT.parent.mkdir(exist_ok=True)
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}, KEPT)


def unpack(folder: Path) -> Path:
    """The taught model from its kept weights."""
    import torch
    from safetensors.torch import load_file, save_file

    build_tiny_model(folder, context=4096)
    weights = {name: tensor.to(torch.float32) for name, tensor in load_file(KEPT).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _batch(tokenizer: Any, domain: Domain, draw: random.Random) -> tuple[Any, Any]:
    """Prompts of generation 0 with random valid answers, defaults preferred; only the answers are learned."""
    import torch

    harness, rows = first_harness(domain.spec), []
    for _ in range(BATCH):
        item = draw.choice(domain.items("search"))
        turns = [{"role": m.role, "content": m.content} for m in chat(harness, item.prompt)]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        answer = {p.name: draw.choice((*p.choices, p.default, p.default)) for p in domain.spec.parameters}
        line = tokenizer.encode(domain.render(answer) + "\n", add_special_tokens=False)
        rows.append((prompt, line))
    width = max(len(prompt) + len(line) for prompt, line in rows)
    tokens = torch.zeros(BATCH, width, dtype=torch.long)
    labels = torch.full((BATCH, width), -100)
    for n, (prompt, line) in enumerate(rows):
        both = torch.tensor([*prompt, *line])
        tokens[n, : len(both)] = both
        labels[n, len(prompt) : len(both)] = both[len(prompt) :]
    return tokens, labels


if __name__ == "__main__":
    import tempfile

    from resia.domains.registry import load_domain

    with tempfile.TemporaryDirectory() as made:
        keep(build(Path(made), load_domain("denoising", {"synthetic": True})))
