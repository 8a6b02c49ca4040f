"""Trained networks in use: inputs (which, and how they see pictures), scoring, evaluation, labelling (pseudo-labels);
output_places and prediction_files (where and how results are written).
"""
