"""Media files to arrays and to vectors in the feature lake."""

from data_pipeline.media.load import load_audio, load_image, load_media, load_video

__all__ = ["load_audio", "load_image", "load_media", "load_video"]
