"""Episodes and windows as PyTorch datasets. Needs `pip install 'salus[torch]'`."""

from ..errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401 - only to say at once what is missing
except ImportError as error:
    raise MissingExtraError.of("salus.torch", extra="torch") from error

from .batch import Sample
from .dataset import EpisodeDataset, WindowDataset
from .loader import Loader, Progress
from .normalizer import Normalizer

__all__ = ["EpisodeDataset", "Loader", "Normalizer", "Progress", "Sample", "WindowDataset"]
