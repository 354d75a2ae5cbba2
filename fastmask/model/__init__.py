"""Model: network, losses, metrics, optimizer, schedule."""
