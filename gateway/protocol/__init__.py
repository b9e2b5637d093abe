"""Wire types only: what clients send and see, and what the vendor sends and sees."""
