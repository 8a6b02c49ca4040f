"""What knows ranks, runs and time.

launching, distributed (ranks) · optimisation (optimisers, schedule, update) · step (one training step) ·
training_data · trainer (the loop) · checkpoints · trained (networks to predict with) · evaluator · scoring ·
snapshots (of a run, in turn) · labelling (the pseudo-label job).
"""
