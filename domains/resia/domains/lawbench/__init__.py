"""LawBench charge prediction: the facts of a criminal case in, its charge or set of charges out.

In: the benchmark's own files, a table, or a data set of the hub. Out: items, scores by protocol, learned tools and
controls. Imports resia.events and resia.domains.base, in its submodules numpy, scipy and scikit-learn; knows nothing of
models, prompts or the log. The domain itself is `domain.LawBench`, the scores are explained in docs/lawbench.md.
"""
