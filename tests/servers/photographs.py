"""Real photographs out of scikit-image's wheel, and what cameras and networks do to them."""

from __future__ import annotations

import io
from pathlib import Path

import skimage.data
from PIL import Image

BUNDLED = Path(skimage.data.__file__).parent
ORIENTATION = 0x0112  # the EXIF tag


def photographs(folder: Path) -> list[Path]:
    """Writes six photographs, PNG and JPEG, one of them turned by its EXIF tag only. Returns their paths."""
    cat, coffee, rocket = (
        Image.open(BUNDLED / name).convert("RGB") for name in ("chelsea.png", "coffee.png", "rocket.jpg")
    )
    paths = [folder / name for name in ("cat.png", "coffee.png", "rocket.jpg", "turned.jpg", "face.png", "ears.jpg")]
    paths[0].write_bytes((BUNDLED / "chelsea.png").read_bytes())
    paths[1].write_bytes((BUNDLED / "coffee.png").read_bytes())
    paths[2].write_bytes((BUNDLED / "rocket.jpg").read_bytes())
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # the camera was held upright: turn by 90 degrees to show
    coffee.crop((100, 0, 500, 400)).save(paths[3], quality=92, exif=exif)
    cat.crop((90, 40, 330, 280)).save(paths[4])
    rocket.crop((200, 0, 500, 300)).save(paths[5], quality=85)
    return paths


def truncated(folder: Path) -> Path:
    """Writes the first half of a JPEG photograph, as a broken upload leaves it."""
    buffer = io.BytesIO()
    Image.open(BUNDLED / "astronaut.png").convert("RGB").save(buffer, "JPEG", quality=92)
    path = folder / "truncated.jpg"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    return path
