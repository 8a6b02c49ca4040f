"""What knows ranks, runs and time.

launching, meeting, distributed, presence (ranks) · claims (one start at a time in a folder) · signals · optimisation
(optimisers, schedule, update) · step (one training step) · training_data · beginning (where a run begins or goes on) ·
journal (curves and pictures) · trainer (the loop) · zero (DeepSpeed) · checkpoints, saving ·
trained (networks to predict with) · evaluator · scoring · snapshots (of a run, in turn) · scratch, labelling (the
pseudo-label job).
"""
