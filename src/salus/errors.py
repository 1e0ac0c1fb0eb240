"""The errors of SALUS, grouped by what the caller does next.

    SalusError
    ├── InvalidInputError (ValueError)        mend the argument
    ├── NotFoundError (KeyError)              another path, uid, feature or tag
    ├── AlreadyExistsError                    another name, or open what is there
    ├── FormatError                           not a dataset, or one this version cannot read
    ├── CorruptDataError                      bytes changed since they were committed
    ├── StorageError (OSError)                the disk or its permissions
    ├── RecordingError                        recording stopped; what was committed stays
    │   ├── EpisodeFencedError                another process decided this episode
    │   ├── QueueFullError                    this step was refused, the episode goes on
    │   └── CommitUnknownError                the disk did not say whether it kept it
    └── MissingExtraError (ImportError)       install the extra

A message says, in this order: what failed, the value received, the value expected, what to do, the path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

MAX_LISTED = 50
"""Problems that one error spells out; a hostile schema has as many as it likes."""


class SalusError(Exception):
    """Base of every error that SALUS raises on purpose. `exit_status` is what the `salus` command exits with."""

    exit_status = 1


class InvalidInputError(SalusError, ValueError):
    """An argument, a step or a schema is wrong. Nothing of it was kept."""

    exit_status = 2

    @classmethod
    def listing(cls, problems: Sequence[str], *, subject: str) -> InvalidInputError:
        """One error for all `problems` of one `subject`."""
        if len(problems) == 1:
            return cls(f"{subject}: {problems[0]}")
        lines = "".join(f"\n  - {problem}" for problem in problems[:MAX_LISTED])
        if len(problems) > MAX_LISTED:
            lines += f"\n  - and {len(problems) - MAX_LISTED} more"
        return cls(f"{subject}: {len(problems)} problems:{lines}")


class NotFoundError(SalusError, KeyError):
    """No such path, episode, feature or tag."""

    exit_status = 3

    def __str__(self) -> str:  # KeyError would show the message quoted and escaped
        return str(self.args[0]) if self.args else ""


class AlreadyExistsError(SalusError):
    """Something is there already, and SALUS overwrites nothing."""

    exit_status = 4


class FormatError(SalusError):
    """Not a SALUS dataset, or one that this version cannot read.

    Attributes:
        problems: Every problem found, as (location, message).
    """

    exit_status = 5

    def __init__(self, message: str, problems: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class CorruptDataError(SalusError):
    """Committed bytes are missing or not what was committed. Other episodes stay readable."""

    exit_status = 6


class StorageError(SalusError, OSError):
    """The storage could not be read: no permission, an I/O error, too many open files."""

    exit_status = 9


class RecordingError(SalusError):
    """Recording could not go on: the disk is full, the recorder is closed. What was committed stays."""

    exit_status = 7


class EpisodeFencedError(RecordingError):
    """Another process decided this episode (recovered or aborted it) while this one still wrote."""


class QueueFullError(RecordingError):
    """No room for this step (`when_full="raise"`). Nothing of it was kept; the episode goes on."""


class CommitUnknownError(RecordingError):
    """The storage did not say whether the object became durable. Look before recording the episode again."""


class MissingExtraError(SalusError, ImportError):
    """An optional dependency is not installed."""

    exit_status = 8

    @classmethod
    def of(cls, what: str, *, extra: str) -> MissingExtraError:
        """The error for `what`, which `pip install 'salus[extra]'` brings."""
        return cls(f"{what} needs an optional dependency that is not installed: pip install 'salus[{extra}]'")


class UnfinishedEpisodesWarning(UserWarning):
    """Recorders that died left episodes unfinished: `salus recover PATH` brings back what they had written."""


@contextmanager
def noted_on(error: BaseException, what: str) -> Iterator[None]:
    """A SalusError of the block becomes a note on `error`, which is on its way already and must not be hidden."""
    try:
        yield
    except SalusError as failed:
        error.add_note(f"salus: {what}: {failed}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'states'?"` when a known name is close, else the known names."""
    import difflib

    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(map(repr, names)) or 'none'}"
