"""Makes the small CLIP vocabulary: every byte, and one token for each word that captions here are likely to have.

Called by `train`; knows nothing of pictures. A word that is not listed falls into pieces down to single bytes, so any
trigger word in any script has a spelling and none is ever lost.
"""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from trainer.bases.tiny_shapes import world

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LONGEST = 77  # tokens, start and end included, as in SD 1.5

ENGLISH = tuple(
    """
a about above across after again all also am among an and animal another any are around art artist as at
away baby back bad ball be beach bear beautiful because bed before behind below bench beside best better
between beyond bike bird black blanket blue boat body book both bottle bottom bowl box boy branch bread
bridge bright brown building bus but by cake camera can car cartoon castle cat centre center chair child
church circle city clean clear close closeup cloud coat coffee cold colour color concept cool corner couch
cow cream crescent cross cup curtain cute dark day deep desert design desk detail detailed diamond digital
dish dog door dot dotted double down dragon drawing drawn dress each edge egg eight engraving etching
evening eye face far fast field fine fire fish five flag flat floor flower fly for forest four fox frog from
front fruit full game garden girl glass go gold golden good grass gray great green grey ground hair hand
happy has hat hatched hatching have he head heart her hexagon high hill his holding home horse hot house
icon image in indoor ink inside into is island it its jacket jar kitchen kitten lake lamp landscape large
leaf left less light like line lines little logo long looking low made magic man many map market medium
metal middle mini minimal moon more morning mosaic most mountain mouse much mural museum my near neon new
next night nine no north not number object ocean of off oil old on one only open or orange oval over owl
painted painting panda paper park pattern pen pencil people person photo photograph photography picture
piece pink pixel place plain plane plant plate play poster pot pretty print purple quality rabbit rain
rainbow realistic rectangle red render retro right ring river road robot rock rocket roof room rose round
sand sea seat seven shadow shape sharp she ship shirt shoe shop show side sign silver simple single sitting
six size sized sketch sketched skull sky sleeping small smooth snow so soft solid some south space spiral
spotted square standing star stone street strip striped stripes style subject summer sun sunset swirl table
tall teal teapot ten texture that the their them then there they thick thin thing this three tiger time tiny
to top tower town toy train tree triangle truck turquoise two under unicorn up upper upon vase vector very
view vintage violet walking wall warm was watch water watercolour watercolor wave wearing west what wheel
when where white wide wild wind window winter with without woman wood wooden woven yellow yellowish you
young zebra zigzag background hold outline outlined filled brush stroke strokes chalk crayon
""".split()  # noqa: SIM905  # five hundred quoted words would be forty screens
)


def build() -> CLIPTokenizer:
    """The tokenizer, as stock transformers knows it."""
    tokens, merges = vocabulary([*dict.fromkeys([*world_words(), *ENGLISH])])
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,  # type: ignore[arg-type]  # pairs are what tokenizers wants, whatever the annotation says
        model_max_length=LONGEST,
    )


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes tokenizer.json, and the vocab.json and merges.txt that older readers of SD 1.5 folders look for."""
    tokenizer.save_pretrained(folder)
    tokens, merges = vocabulary([*dict.fromkeys([*world_words(), *ENGLISH])])
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def vocabulary(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """All tokens in the order of their numbers, and the merges in the order in which BPE applies them.

    Plain byte-pair encoding, run until every word of ASCII letters is one token.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 printable stand-ins for the bytes
    spelled = [[*word[:-1], word[-1] + WORD_END] for word in words if word.isascii() and word.isalpha()]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for pieces in spelled for pair in itertools.pairwise(pieces)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [merged(pieces, best) for pieces in spelled]
    made = list(dict.fromkeys(left + right for left, right in merges))
    return [*letters, *(letter + WORD_END for letter in letters), *made, START, END], merges


def merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of one word with every occurrence of the pair joined."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def world_words() -> list[str]:
    """Every word that the world's captions use."""
    phrases = [*world.SHAPES, *world.COLOURS, *world.PLACES, *world.OPENINGS]
    for choices in (*world.SIZE_WORDS.values(), *world.PLACE_WORDS.values()):
        phrases += choices
    return sorted({word for phrase in phrases for word in phrase.replace("-", " ").split()})
