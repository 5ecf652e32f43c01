"""Engines: what answers prompts with tokens and their log-probabilities.

In: prompts, seeds and an adapter file. Out: completions. `transformers_engine` is the embedded one, over `sampling`,
`shared_prefix` and `lora`; `tiny` builds a random model for tests, `gguf` converts a downloaded one. None of them is
imported here, because each loads torch.
"""
