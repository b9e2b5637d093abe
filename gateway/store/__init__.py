"""Shared state behind whole, atomic decisions: `base` is the contract, the others keep it."""
