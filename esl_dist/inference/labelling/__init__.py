"""Pseudo-labels: job (the story), pieces (predicted, and what a kill leaves), labels (what thresholds keep)."""
