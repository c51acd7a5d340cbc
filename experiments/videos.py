"""Frames to videos: files, and animations in TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter


def enlarge(frames: np.ndarray, min_height: int = 128) -> np.ndarray:
    """Repeat pixels until frames (t, h, w, c) are at least `min_height` high; make grey RGB."""
    scale = -(-min_height // frames.shape[1])
    enlarged = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    return enlarged.repeat(3, axis=3) if enlarged.shape[3] == 1 else enlarged


def tile(videos: Sequence[np.ndarray]) -> np.ndarray:
    """Put videos (t, h, w, c) side by side; shorter ones wait on their last frame."""
    length = max(len(v) for v in videos)
    padded = [np.concatenate([v, v[-1:].repeat(length - len(v), axis=0)]) for v in videos]
    return np.concatenate(padded, axis=2)


def check_video(path: Path, name: str = "a video") -> None:
    """Raise a ValueError where a file, called `name`, ends in what no video is written to."""
    if path.suffix not in (".mp4", ".gif"):
        raise ValueError(f"{name} must end in .mp4 or .gif, got {path.name!r}")


def save_video(path: str | Path, frames: np.ndarray, fps: float = 10) -> None:
    """Write frames (t, h, w, c) uint8 to a .mp4 or .gif file.

    Raises:
        ValueError: the file name ends in something else.
    """
    path = Path(path)
    check_video(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        path.write_bytes(encode_gif(frames, fps))
    else:
        iio.imwrite(path, enlarge(frames), plugin="FFMPEG", fps=fps, macro_block_size=2)


def encode_gif(frames: np.ndarray, fps: float = 10) -> bytes:
    """Encode frames (t, h, w, c) uint8 as an endless GIF."""
    buffer = io.BytesIO()
    iio.imwrite(buffer, enlarge(frames), extension=".gif", duration=1000 / fps, loop=0)
    return buffer.getvalue()


def add_video(
    writer: SummaryWriter, tag: str, frames: np.ndarray, step: int, fps: float = 10
) -> None:
    """Show frames (t, h, w, c) uint8 under TensorBoard's images, where GIFs play.

    `SummaryWriter.add_video` does the same but needs moviepy.
    """
    _, height, width, _ = frames.shape
    image = Summary.Image(
        height=height,
        width=width,
        colorspace=3,
        encoded_image_string=encode_gif(frames, fps),
    )
    file_writer = writer._get_file_writer()
    file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
