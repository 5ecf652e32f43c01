"""TriMul, the outgoing triangle multiplicative update: one operator, made fast without being made wrong.

    operator.py   the mathematics in float64, and what goes in       cases.py     which shapes are tested and timed
    criterion.py  when an output is right                            roofline.py  what no device can beat
    tool.py       the arguments of the tool `launch`                 domain.py    items, scores, controls
    template.py   the kernel file whose arguments those are (torch, for a machine without a GPU)

Imports resia.events and resia.domains.base, numpy in its submodules and torch when an answer is scored; knows nothing
of kernels written by an agent, of processes or of the log: those are the business of `resia.kernels`.
"""
