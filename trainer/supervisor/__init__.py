"""The trainer's parent process: the stream, files, the spool, the engine child. Knows no torch, store or gateway."""
