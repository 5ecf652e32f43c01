"""Meta, Task and Feedback: their deciders, the harness, landscape, selection, gate and proposers.

In: facts and folded state. Out: facts. Imports events, replay and domains; effects only through the ports beside it.
"""
