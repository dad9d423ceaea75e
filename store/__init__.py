"""What is remembered: SQL, objects and the life of a tune. Knows no RPC, no HTTP and no torch."""
