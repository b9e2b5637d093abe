"""What the gateway is about: models and sizes, and what can go wrong."""
