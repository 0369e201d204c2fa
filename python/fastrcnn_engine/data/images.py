"""From an image file to its pixels. Needs no torch, so reading and drawing do not wait for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

# Whatever the name of a file says, its content chooses among these. Pillow knows many more; one of
# them, PostScript, it has run by Ghostscript, and a photo from anywhere must not be a program.
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000")
EXIF_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 258  # of TIFF


@contextmanager
def opened_image(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An image file of one of the FORMATS, not decoded yet.

    Raises FileNotFoundError where there is no file, and ValueError, naming it, for whatever goes
    wrong with it in the block.
    """
    if not Path(path).is_file():  # a pipe would be waited for
        raise FileNotFoundError(f"{path}: no such image file")
    try:
        with Image.open(path, formats=FORMATS) as image:
            # Pillow turns such files, and no others, some of them wrongly.
            turned = image.getexif().get(EXIF_ORIENTATION, 1) if image.format == "TIFF" else 1
            if turned in range(2, 9):
                raise ValueError(f"a TIFF with orientation {turned}; save it as it is to be seen")
            yield image
    except MemoryError:
        raise  # the file may be good
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise ValueError(f"{path}: not readable as an image: none of {known}") from None
    except Exception as error:  # Pillow has no list of what a broken file raises
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: not readable as an image: {reason}") from None


def load_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads an image file as (H, W, 3) uint8 RGB, as it is stored (an EXIF rotation is not
    applied).

    Grey and palette images become RGB, an alpha channel is left out, grey of 16 or 12 bits keeps
    its upper 8. Raises FileNotFoundError, and ValueError for a file that is no image, whose range
    is not known, or that is a TIFF with a rotation.
    """
    with opened_image(path) as image:
        # Pillow's own conversion would clip at 255. PGM files of 16 bits it gives as 32.
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
            is_tiff = isinstance(image, TiffImageFile)
            bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] if is_tiff else 16
            grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode in ("I", "F"):
            raise ValueError(
                f"{image.mode!r} pixels (32 bits) have no known range; save the image with 8 or 16 "
                "bits a channel"
            )
        if image.mode == "P":
            image = image.convert("RGBA")  # a palette may hold transparency
        return np.array(image.convert("RGB"))


def check_image(image: np.ndarray) -> None:
    """Raises ValueError for anything but an (H, W, 3) uint8 image with H and W above 0."""
    if image.ndim != 3 or image.shape[2] != 3 or image.shape[0] == 0 or image.shape[1] == 0:
        raise ValueError(f"image must be (H, W, 3) with H, W above 0, got shape {image.shape}")
    if image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 (RGB, 0..255), got {image.dtype}")
