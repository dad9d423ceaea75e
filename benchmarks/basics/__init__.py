"""The service's own figures: training speed, latency, creation rate, footprint."""
