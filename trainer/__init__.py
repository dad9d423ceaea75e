"""The training worker: runs one tune at a time on the accelerator it has. Knows nothing of the gateway or the store."""
