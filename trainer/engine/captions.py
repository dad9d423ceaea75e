"""What is said of each picture: the trigger word where nothing is said, and notes on what a reader should know. Called
by `tune`; knows no tokenizer but by what it cuts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

LISTED = 10  # files named in a note; more would not be read


def captions(given: Sequence[str], trigger_word: str) -> list[str]:
    """A missing caption becomes the trigger word; any other is kept as it was written."""
    return [caption if caption.strip() else trigger_word for caption in given]


def without_trigger(said: Mapping[str, str], trigger_word: str) -> list[str]:
    """Ids of the files whose caption does not hold the trigger word. said: file id -> caption."""
    wanted = trigger_word.casefold()
    return [file_id for file_id, caption in said.items() if wanted not in caption.casefold()]


def plain(caption: str, trigger_word: str) -> str:
    """The caption without the trigger word and what hung on it: ", inkdrop style" leaves no comma behind."""
    rest = re.sub(re.escape(trigger_word), "", caption, flags=re.IGNORECASE)
    parts = (" ".join(part.split()) for part in rest.split(","))
    return ", ".join(filter(None, parts))


def cut(said: Mapping[str, str], rest: Callable[[str], str]) -> dict[str, str]:
    """File id -> what the encoder does not see of its caption, where there is such. rest: caption -> what is cut."""
    cuts = {file_id: rest(caption) for file_id, caption in said.items()}
    return {file_id: lost for file_id, lost in cuts.items() if lost}


def lacks_trigger_note(file_ids: Sequence[str], trigger_word: str) -> str:
    """One sentence for all of them."""
    return (
        f"{_files(file_ids)} a caption without the trigger word {trigger_word!r}, kept as written: {_named(file_ids)}"
    )


def cut_note(cuts: Mapping[str, str]) -> str:
    """One sentence for all of them, with what is cut of each."""
    shown = "; ".join(f"{file_id} loses {_short(lost)!r}" for file_id, lost in list(cuts.items())[:LISTED])
    more = f"; and {len(cuts) - LISTED} more" if len(cuts) > LISTED else ""
    return f"{_files(list(cuts))} a caption longer than the text encoder reads: {shown}{more}"


def tag_frequencies(said: Sequence[str]) -> dict[str, int]:
    """How often each comma-separated tag occurs, most frequent first."""
    counted = Counter(tag for caption in said for part in caption.split(",") if (tag := part.strip()))
    return dict(sorted(counted.items(), key=lambda pair: (-pair[1], pair[0])))


def _files(file_ids: Sequence[str]) -> str:
    return "1 file has" if len(file_ids) == 1 else f"{len(file_ids)} files have"


def _named(file_ids: Sequence[str]) -> str:
    more = f" and {len(file_ids) - LISTED} more" if len(file_ids) > LISTED else ""
    return ", ".join(file_ids[:LISTED]) + more


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
