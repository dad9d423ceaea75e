"""Which names a new tenant and a new key may bear. Called by keys.py, and by the command line, which tells what is
wrong with both at once.

Two names that look alike in a list must be alike: no blank at an end, no tab, nothing that a terminal obeys.
"""

from __future__ import annotations

MOST = 128  # characters


def fault_of_tenant(name: str) -> str | None:
    """What is wrong with a tenant's name; None where nothing is."""
    # An asset's full name is OWNER:NAME.
    if name and _is_plain(name) and ":" not in name:
        return None
    wanted = f"1 to {MOST} printable characters, but no colon, and no blank at either end, were wanted"
    return f"the tenant's name is {name!r}; {wanted}"


def fault_of_key(name: str) -> str | None:
    """What is wrong with a key's name, which may be empty; None where nothing is."""
    if _is_plain(name):
        return None
    return f"the key's name is {name!r}; up to {MOST} printable characters, and no blank at either end, were wanted"


def _is_plain(name: str) -> bool:
    return len(name) <= MOST and name.isprintable() and name == name.strip()
