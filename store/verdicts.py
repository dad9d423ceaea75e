"""How a tune's files stand: which of them cannot be trained on, and what becomes of the tune by that. Called by claims
when a slot is free, and by tunes.check, which foretells it; knows no trainer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from store.database import Transaction
from store.dialect import among
from store.events import Entry
from store.states import TuneState
from store.tables import Asset, Tune, assets, record

Fault = tuple[str, str, str]  # a file's id, why it cannot be trained on for programs, the rest of a sentence for people


async def look_up(transaction: Transaction, ids: Sequence[str]) -> dict[str, Asset]:
    """By id, the assets that a tune names."""
    return {row.id: record(Asset, row) for row in await transaction.execute(_ASSETS, {"ids": ids})}


_ASSETS = select(assets).where(among(assets.c.id, "ids"))  # by the primary key; deleted ones too


@dataclass(frozen=True)
class Judged:
    """How a tune's files stand."""

    entries: Sequence[Entry] = ()
    """A verdict on each that cannot be used."""
    values: dict[str, Any] = field(default_factory=dict)
    """Columns of the result."""
    failure: tuple[str, str] | None = None
    """(reason, sentence) where the tune cannot go on."""


def judge_files(tune: Tune, known: Mapping[str, Asset]) -> Judged:
    """What is not there to be trained on, each with its reason. Judged once: a later attempt sees the same pictures."""
    if tune.available is not None:
        return _judged_before(tune, known)
    return _judged(tune, known, [*_faults(tune, known)])


def foretell(tune: Tune, known: Mapping[str, Asset]) -> None:
    """Has a tune that was only checked tell what its files would make of it. What is still to be uploaded is taken to
    come and to be good: only a verdict that is there already is final.
    """
    refused = [fault for fault in _faults(tune, known) if fault[1] != NOT_UPLOADED]
    if not refused:
        return
    judged = _judged(tune, known, refused)
    changes = judged.values
    if judged.failure is not None:
        changes = {**changes, "state": TuneState.FAILED, "status_details": judged.failure[1]}
    for name, value in changes.items():
        setattr(tune, name, value)


def called(asset: Asset | None) -> str:
    """What a sentence calls an asset."""
    return "A file" if asset is None else f"{asset.name!r} ({asset.id})"


def _judged(tune: Tune, known: Mapping[str, Asset], faults: Sequence[Fault]) -> Judged:
    unready = [id for id, reason, _ in faults if reason == NOT_UPLOADED]
    rejected = [id for id, reason, _ in faults if reason != NOT_UPLOADED]
    good = len(tune.files) - len(faults)
    values: dict[str, Any] = {"available": good, "rejected": rejected, "unready": unready}
    if not faults:
        return Judged(values=values)
    sentences = {id: f"{called(known.get(id))} {details}." for id, _, details in faults}
    verdicts: list[Entry] = [
        ("verdict", {"file_id": id, "accepted": False, "reason": reason, "details": sentences[id]})
        for id, reason, _ in faults
    ]
    which = f"{len(faults)} of {len(tune.files)} files"
    why = " ".join(sentences.values())
    if tune.continue_on_rejection and good:
        return Judged(verdicts, {**values, "status_details": f"Goes on without {which}. {why}"})
    reason = "UNREADY_PICTURES" if unready and not rejected else "REJECTED_PICTURES"
    return Judged(verdicts, values, (reason, f"{which} cannot be used. {why}"))


def _judged_before(tune: Tune, known: Mapping[str, Asset]) -> Judged:
    """A trainer may have refused a picture and died before it could say that the tune has failed for it."""
    if tune.continue_on_rejection or not tune.rejected:
        return Judged()
    which = " and ".join(called(known.get(id)) for id in tune.rejected)
    return Judged(failure=("REJECTED_PICTURES", f"{which} cannot be used; the events say why."))


def _faults(tune: Tune, known: Mapping[str, Asset]) -> Iterable[Fault]:
    """The files that cannot be trained on, in order."""
    return ((id, *fault) for id, _ in tune.files if (fault := _fault(known.get(id))) is not None)


NOT_UPLOADED = "NOT_UPLOADED"  # the one reason that may pass


def _fault(file: Asset | None) -> tuple[str, str] | None:
    """(reason for programs, the rest of a sentence) where the file cannot be trained on."""
    if file is None or file.status == "deleted":
        return "DELETED", "was deleted"
    if file.status in ("ready_to_upload", "uploaded"):
        return NOT_UPLOADED, "has not been uploaded"
    if file.status == "ready":
        return None
    reason = str((file.status_info or {}).get("reason") or "REJECTED")
    what = "is in error" if file.status == "error" else "was rejected"
    return reason, f"{what} ({file.status_details.rstrip('.') or reason})"
