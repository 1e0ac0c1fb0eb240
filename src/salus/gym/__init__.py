"""Gymnasium environments, single and vectorised, recorded as they run. Needs `pip install 'salus[gym]'`."""

from ..errors import MissingExtraError

try:
    import gymnasium as _gymnasium  # noqa: F401 - only to say at once what is missing
except ImportError as error:
    raise MissingExtraError.of("salus.gym", extra="gym") from error

from .single import RecordEpisodes
from .spaces import schema_from_env
from .vector import RecordVectorEpisodes

__all__ = ["RecordEpisodes", "RecordVectorEpisodes", "schema_from_env"]
