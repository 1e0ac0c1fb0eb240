"""One small module per group of contestants."""

from .base import Contestant, UnsupportedError
from .hdf5 import Hdf5Gzip, Hdf5Plain
from .lerobot import LeRobotImage, LeRobotVideo
from .ours import DecodingAlone, DecodingTogether, Salus
from .tables import Lance, WebDataset
from .tensorstore import TensorStore, TensorStoreChannelsLast
from .zarr_python import DiffusionPolicy, NoteChunkPlan, Zarrs, ZarrSharded

ALL: tuple[type[Contestant], ...] = (
    Salus,
    DecodingAlone,
    DecodingTogether,
    TensorStore,
    TensorStoreChannelsLast,
    ZarrSharded,
    Zarrs,
    DiffusionPolicy,
    NoteChunkPlan,
    Hdf5Plain,
    Hdf5Gzip,
    LeRobotImage,
    LeRobotVideo,
    WebDataset,
    Lance,
)

__all__ = ["ALL", "Contestant", "UnsupportedError"]
