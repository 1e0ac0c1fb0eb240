"""Recording: `Recorder` hands out episodes, checks every step, and encodes and writes in the background."""

from .episode_writer import EpisodeWriter
from .recorder import Recorder
from .vector import VectorRecorder

__all__ = ["EpisodeWriter", "Recorder", "VectorRecorder"]
