"""The engine: the child process that holds torch, a resident base model and one tune at a time."""
