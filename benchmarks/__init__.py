"""Measures ours beside a peer in the same run, and prints ratios with their spread as JSON. Nothing passes or fails."""
