"""A film that a display matrix turns, as telephones write them."""

from __future__ import annotations

import io

import av
import numpy as np


def render_rotated_film(degrees: int) -> tuple[bytes, np.ndarray]:
    """An MP4 of three equal frames whose upper left quarter is white, and what a viewer is to see, uint8 [H, W, 3]."""
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:16, :24] = 255
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, width=48, height=32, pix_fmt="yuv420p")
        stream.set_display_rotation(degrees)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue(), np.rot90(frame, degrees // 90)
