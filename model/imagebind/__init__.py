"""ImageBind and the encoders built on it: a medium to one vector."""

from model.imagebind.network import ImageBind, ImageBindConfig

__all__ = ["ImageBind", "ImageBindConfig"]
