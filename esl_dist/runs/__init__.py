"""What a run leaves on disk, and what is loaded from it: checkpoints, snapshots, scores, records, the folder's lock."""
