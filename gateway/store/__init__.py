"""Shared state behind atomic decisions (0011, 0012, 0021): contracts, `memory`, and `redis`."""
