"""One page of what runs, scores and pseudo-labels say: gathering (the whole), runs, scores, curves, rounds, pictures
(its parts), writing (one HTML file, made of the files in page/).
"""
