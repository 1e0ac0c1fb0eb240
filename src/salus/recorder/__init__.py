"""Recording: `Recorder` hands out episodes, checks every step, and encodes and writes in the background."""

from .background import QueueStatus
from .episode_writer import EpisodeWriter
from .recorder import Recorder
from .stream import WhenFull
from .uploads import UploadStatus
from .vector import VectorRecorder

__all__ = ["EpisodeWriter", "QueueStatus", "Recorder", "UploadStatus", "VectorRecorder", "WhenFull"]
