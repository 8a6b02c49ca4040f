"""Who computes, meets, sums, agrees, and who is lost; knows no run, no network, no shard."""
