"""The control plane: takes tunes over gRPC and HTTP, streams work to trainers. Knows protos and store, and no torch."""
