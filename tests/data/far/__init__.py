"""Shards from far away: what servers answer, and what becomes of it here."""
