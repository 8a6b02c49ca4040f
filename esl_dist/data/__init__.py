"""From a data set's files to batches of tensors; knows no network.

labels, class_sets (classes, colours, id maps) · images (decode, resize, encode) · descriptions, patterns, source_files,
split_lists, layouts (a data set's folders → pairs of files) · toytown (the drawn data set) · sources,
processes, changes, folders, packing (files → shards) · shard_index, shards (the format: write, index, read) · sampling
(which sample, which rank, which step) · workers, loading (decode, batch, read ahead).
"""
