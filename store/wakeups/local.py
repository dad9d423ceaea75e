"""Wake-ups within one process: SQLite's, where there is one gateway, and tests'."""

from __future__ import annotations

from store.wakeups.base import Topic, Wakeups


class LocalWakeups(Wakeups):
    """Tells this process's subscribers, at once."""

    def publish(self, topic: Topic, id: str) -> None:
        """Tells the id."""
        self.deliver(topic, (id,))

    async def start(self) -> None:
        """There is nothing to listen to."""

    async def close(self) -> None:
        """There is nothing to end."""
