"""Pseudo-labels: job (the story), pieces (and what a kill leaves), prediction, labels (what thresholds keep)."""
