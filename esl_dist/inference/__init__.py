"""Trained networks in use: predictor (how they predict), predictions, scoring, evaluation, labelling (pseudo-labels);
output_places and prediction_files (where and how results are written).
"""
