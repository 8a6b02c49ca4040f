"""What knows ranks, runs and time.

launching, distributed (ranks) · optimisation (optimisers, schedule, update) · step (one training step) ·
trainer (the loop) · checkpoints · evaluator · labelling (the pseudo-label job).
"""
