"""From a data set's files to batches of tensors; knows no network.

labels (classes, colours, id maps) · images (decode, resize, encode) · layouts (a data set's folders → pairs of files) ·
toytown (the drawn data set) · packing (files → shards) · shards (the format: write, index, read) ·
sampling (which sample, which rank, which step) · loading (decode, batch, prefetch).
"""
