"""The method: formulas on logits and labels; knows no files and no ranks.

losses · methods (source-only, MinEnt, AdvEnt, self-training, masked consistency: one file each) · entropy (statistics
per class that add up) · pseudo_labels (scores, thresholds, and what they keep) · teacher, trust, mixing, augmentation,
masks (what self-training is made of).
"""
