"""Engines: what answers prompts with tokens and their log-probabilities.

In: prompts, seeds and an adapter file. Out: completions. `transformers_engine` is the embedded one, over `sampling`,
`shared_prefix` and `lora`; `vllm_engine` asks servers that run vLLM, over `vllm_replica`; both speak `chat_tokens`.
`tiny` builds a random model for tests, `gguf` converts a downloaded one. `openai_chat` asks a model behind an endpoint,
for proposals only. None of them is imported here, because most load torch.
"""
