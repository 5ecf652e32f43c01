"""A small LawBench folder as the benchmark writes it, and where the real one may be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resia.domains.lawbench.charges import Charges

REAL = Path(__file__).parents[2] / "shared" / "data" / "lawbench"
needs_real = pytest.mark.skipif(
    not REAL.exists(), reason="LawBench is not beside this checkout (../shared/data/lawbench)"
)
# 诈骗 stands inside 合同诈骗; 爆炸 and 走私 are not on the benchmark's own list.
CHARGES = Charges(
    ["盗窃", "诈骗", "合同诈骗", "爆炸", "走私", "走私废物", "走私、贩卖、运输、制造毒品", "抢劫", "盗窃、侮辱尸体"]
)
FACTS = ["被告人" + "".join(chr(0x5000 + 37 * n + 5 * k) for k in range(20 + n)) for n in range(12)]
GOLD = ["盗窃", "诈骗", "盗窃;诈骗", "抢劫", "爆炸", "合同诈骗"] * 2


def folder(path: Path, split: dict[str, list[int]] | None = None) -> Path:
    """`path` with 3-3 (12 records), 3-1 (the first two of them and one more) and a split of three parts."""
    asked = [
        {"instruction": "", "question": f"事实:{fact}\r\n", "answer": f"罪名:{gold}"}
        for fact, gold in zip(FACTS, GOLD, strict=True)
    ]
    other = [*zip(FACTS[:2], GOLD[:2], strict=True), ("某乙供述其罪名:抢劫不实，实系偷运弹药入境。", "走私")]
    held = [
        {"instruction": "", "question": f"事实:{fact}\n罪名:{gold}。", "answer": "法条:刑法第264条"}
        for fact, gold in other
    ]
    (path / "zero_shot").mkdir(parents=True)
    for name, records in (("3-3", asked), ("3-1", held)):
        (path / "zero_shot" / f"{name}.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    parts = split or {"train": [0, 1, 2, 3], "val": [4, 5], "test": [6, 7, 8]}
    (path / "split_meta_harness_200_50_100.json").write_text(json.dumps(parts), encoding="utf-8")
    return path
