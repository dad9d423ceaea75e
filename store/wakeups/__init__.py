"""Wake-ups: how a committed write reaches those who wait for it, in this process and in others."""

from store.wakeups.base import Subscription, Topic, Wakeups

__all__ = ["Subscription", "Topic", "Wakeups"]
