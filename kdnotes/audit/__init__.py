"""The probes on one's own networks."""
