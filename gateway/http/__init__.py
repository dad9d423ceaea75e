"""The HTTP side of the gateway: transcodes JSON over HTTP to the gRPC services, by their descriptors alone."""
