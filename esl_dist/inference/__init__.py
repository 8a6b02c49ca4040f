"""What a trained network is used for: statistics, evaluation, scores, pseudo-labels."""
