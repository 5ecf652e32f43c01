"""Pure folds over facts: run state, lineage, ledger, verification, diff and explanation.

In: facts in order. Out: state rebuilt at any event. Imports events; no clock, no I/O, no randomness.
"""
