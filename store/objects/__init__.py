"""Where bytes lie: pictures, checkpoints, snapshots, LoRAs."""

from store.objects.base import Objects, Stat

__all__ = ["Objects", "Stat"]
