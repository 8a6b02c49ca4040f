"""The networks; they know no files but their own weights, and no data.

batch_norm (statistics per domain, synchronised over ranks) · deeplab (segmentation) · discriminator · weights (initial
weights: random, published, torchvision's).
"""
