"""Trained networks in use: inputs (which, and how they see pictures), scoring, evaluation, labelling (pseudo-labels),
predicting (masks of one's own pictures); output_places, prediction_files and prediction_records (where and how results
are written).
"""
