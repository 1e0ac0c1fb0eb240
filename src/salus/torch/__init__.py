"""Episodes and windows as PyTorch datasets. Needs `pip install 'salus[torch]'`."""

from ..errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401 - only to say at once what is missing
except ImportError as error:
    raise MissingExtraError.of("salus.torch", extra="torch") from error

from .dataset import EpisodeDataset, Sample, WindowDataset

__all__ = ["EpisodeDataset", "Sample", "WindowDataset"]
