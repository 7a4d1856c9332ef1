"""Read by every Python process that the tests start, as this folder is on their path.

A suite starts some thousand of them, Ray's own among them, and what they import stays: looking through it for garbage
after every 700 new objects, as Python does, is a sixth of each start.
"""

import gc

gc.set_threshold(50_000, 10, 10)
