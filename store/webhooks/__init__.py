"""Webhooks: who is told of a tune's moves, what they are to be told, and how that goes."""
