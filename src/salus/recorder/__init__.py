"""Recording: `Recorder` hands out episodes, checks every step, and encodes and writes in the background."""

from .background import QueueStatus
from .episode_writer import EpisodeWriter, WhenFull
from .recorder import Recorder
from .vector import VectorRecorder

__all__ = ["EpisodeWriter", "QueueStatus", "Recorder", "VectorRecorder", "WhenFull"]
