"""Tools of one's own: Python files that are loaded by their path."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

from data_pipeline.errors import InputError

_MODULE_PREFIX = "tool_file_"


def load_tool_file(path: str) -> types.ModuleType:
    """Import a Python file by its path, once per process.

    Raises:
        InputError: no such file, or none that can be imported.
    """
    name = _MODULE_PREFIX + path.replace(os.sep, "_").removesuffix(".py").replace(".", "_")
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise InputError(f"there is no Python file {path!r}; give the path of a file that holds a ToolSpec.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is imported
    try:
        spec.loader.exec_module(module)
    except Exception:
        del sys.modules[name]
        raise
    return module
