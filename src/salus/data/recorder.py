"""`salus.data.recorder`: the recorder under the module name of the original system."""

from ..opening import create, open
from ..recorder import EpisodeWriter, Recorder

__all__ = ["EpisodeWriter", "Recorder", "create", "open"]
