"""The weight lever: one batch type, objectives over it, LoRA policy, and the trainer's decider.

In: recorded trajectories. Out: adapters and step facts. Imports events and replay; knows no domain and no agent.
"""
