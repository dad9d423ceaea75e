"""The control plane: takes tunes over gRPC and HTTP, streams work to trainers. Knows protos and store, and no torch."""

import os

# Before grpc is imported anywhere: its fork handlers, which only Python's os.fork() needs, run in the child of uvloop's
# fork too, and one in 150 of the judging workers died there of SIGSEGV (grpcio 1.85.1); with this none of 600 did.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
