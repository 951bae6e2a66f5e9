"""Pictures as an MP4 file, by the ffmpeg that the wheel of imageio-ffmpeg brings: none of the system is needed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.errors import InvalidInputError

Picture = npt.NDArray[np.uint8]


def require_ffmpeg() -> None:
    """Raises InvalidInputError, with the remedy, where no video can be written."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise InvalidInputError(
            f"no video can be written ({error}); pip install imageio-ffmpeg, or do without a video"
        ) from error


def write_video(path: Path, pictures: Sequence[Picture], fps: float) -> Path:
    """Write ``pictures``, all [height, width, 3], at ``fps`` a second; whole or not at all; its path.

    Raises InvalidInputError without ffmpeg or pictures, and OSError.
    """
    require_ffmpeg()
    if not pictures:
        raise InvalidInputError("pictures: there is none; give at least one")
    import imageio_ffmpeg

    height, width = pictures[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(part), (width, height), fps=fps, macro_block_size=2, quality=7, ffmpeg_log_level="error"
    )
    try:
        writer.send(None)
        for picture in pictures:
            writer.send(np.ascontiguousarray(picture))
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def captioned(picture: Picture, text: str, size: tuple[int, int]) -> Picture:
    """``picture`` fitted into ``size`` (width, height), under a line of text on white."""
    from PIL import Image, ImageDraw, ImageFont, ImageOps

    width, height = size
    sheet = Image.new("RGB", size, "white")
    room = (width, height - _CAPTION)
    fitted = ImageOps.contain(Image.fromarray(picture), room)
    sheet.paste(fitted, ((width - fitted.width) // 2, _CAPTION))
    font: Any = ImageFont.load_default(size=15)
    ImageDraw.Draw(sheet).text((8, 4), text, fill="black", font=font)
    return np.asarray(sheet, dtype=np.uint8)


#: Pixels of the line of text.
_CAPTION = 26


def tiled(rows: Sequence[Sequence[Picture]]) -> Picture:
    """Pictures beside each other, rows below each other; sizes have to fit."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
