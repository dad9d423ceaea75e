"""The command `tunesmith`."""
