"""Denoising of single-cell counts: one tool, `denoise`, that is MAGIC with a few choices.

In: a matrix of molecule counts. Out: items, scores (published and audited) and controls. Imports resia.events and
resia.domains.base, in its submodules numpy; knows nothing of models, prompts, the log or where the data came from.
The domain itself is `domain.Denoising`.
"""
