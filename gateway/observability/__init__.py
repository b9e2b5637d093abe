"""What the gateway says of itself: metrics, logs, traces."""
