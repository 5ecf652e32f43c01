"""Problem domains: items, one tool, scorer, controls.

In: a task's options and data files. Out: scores. Imports resia.events; knows nothing of models, kernels or the bus.
"""
