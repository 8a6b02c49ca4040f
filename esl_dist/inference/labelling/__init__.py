"""Pseudo-labels: job (the story), pieces (what a kill leaves), levels (predict and count), labels (what is kept),
histograms (what other thresholds would keep).
"""
