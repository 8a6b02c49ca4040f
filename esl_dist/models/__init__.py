"""The networks; they know no files but their own weights, and no data.

segmentation (what is known of a network by all that train it or predict with it) · deeplab (the published one) ·
timm_networks (backbones of timm) · decoders · batch_norm (statistics per domain, synchronised over ranks) ·
discriminator · weights (initial weights: random, published, torchvision's, timm's).
"""
