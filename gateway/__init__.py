"""The control plane: accepts tunes over gRPC and HTTP, and streams work to trainers. Knows the protos and the store, and no torch."""
