"""The smallest media of each kind, which the serving tests share."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy.io import wavfile


def picture(value: int = 0, kind: str = "PNG") -> bytes:
    """8 x 8 pixels of one grey."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, kind)
    return file.getvalue()


def sound() -> bytes:
    """A tenth of a second of silence, WAV."""
    file = io.BytesIO()
    wavfile.write(file, 8000, np.zeros(800, np.int16))
    return file.getvalue()
