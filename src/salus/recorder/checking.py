"""What may be recorded: every value of a step, or of a whole episode, against the schema. All problems at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..errors import InvalidInputError, did_you_mean
from ..layout import array_specs
from ..schema import STEP, TIMESTAMP, Feature, Image, Schema, Text, flatten, stamps_name

Stored = dict[str, np.ndarray]

MAX_TEXT_BYTES = 10**6

_VALID = np.ones(1, bool)
_VALID.flags.writeable = False


class StepChecker:
    """Turns what a caller hands over into arrays as they are stored, or into one error that lists every problem.

    Args:
        schema: The schema to record under.
        bgr: Image features on the clock that arrive with red and blue exchanged.
        clock: Only the features on this clock are looked at.

    Attributes:
        clock: Its name.
        features: The recorded features on it, by name.
        specs: The arrays on it, by name.
        stamps: The array of its stamps.

    Raises:
        InvalidInputError: `bgr` names something that is no color image.
    """

    def __init__(self, schema: Schema, bgr: Collection[str] = (), *, clock: str = STEP) -> None:
        self.clock = clock
        self.features = {name: feature for name, feature in schema.recorded.items() if feature.clock == clock}
        self.specs = {name: spec for name, spec in array_specs(schema).items() if spec.clock == clock}
        self.stamps = stamps_name(clock)
        self._elsewhere = {name: feature.clock for name, feature in schema.recorded.items() if feature.clock != clock}
        self._what = "append" if clock == STEP else f"push to {clock!r}"
        for name in bgr:
            feature = self.features.get(name)
            if not isinstance(feature, Image) or feature.color != "rgb":
                raise InvalidInputError(f"bgr: got {name!r}, expected the name of an RGB image feature")
        self._bgr = frozenset(bgr)
        self._nullable = {name for name, feature in self.features.items() if feature.nullable}
        self._plans = [
            (
                name,
                self.specs[name].numpy_dtype,
                # No array has the shape None: text, and what arrives with its channels exchanged, are for `_check`.
                None if isinstance(feature, Text) or name in self._bgr else feature.shape,
                self.specs[name].numpy_dtype.kind == "f" and not feature.allow_nan,
                (0, 2, 3, 1) if self.specs[name].channels_last else None,
            )
            for name, feature in self.features.items()
        ]

    def step(self, values: Mapping[str, Any], more: Mapping[str, Any]) -> Stored:
        """One step: array name to (1, *stored_step_shape), views of what was given where possible.

        A nullable feature of one step per chunk that carries no value is not among them; its `.valid` is.

        Raises:
            InvalidInputError: Every problem of the step.
        """
        stored = self._usual(values, more)
        if stored is None:
            stored, _ = self._check(values, more, whole=False)
        return stored

    def _usual(self, values: Mapping[str, Any], more: Mapping[str, Any]) -> Stored | None:
        """The same for a step of numpy arrays as the schema declares them, in less time; None for others.

        A robot's loop runs this code from cold caches, where each line counts. Every problem is left to `_check`.
        """
        if type(values) is not dict:
            return None
        given: Mapping[str, Any] = {**values, **more}
        if len(given) != len(values) + len(more):
            return None
        if given.keys() != self.features.keys():
            given = flatten(given)
            if given.keys() != self.features.keys():
                return None
        stored: Stored = {}
        with np.errstate(over="ignore"):  # what overflows is not finite, and goes to `_check`
            for name, dtype, shape, finite, axes in self._plans:
                value = given[name]
                if type(value) is not np.ndarray or value.shape != shape:
                    return None
                if value.dtype != dtype:
                    if not finite or value.dtype.kind != "f":
                        return None
                    value = value.astype(dtype)
                if finite and not np.isfinite(value).all():
                    return None
                stored[name] = value[None] if axes is None else value[None].transpose(axes)
        for name in self._nullable:
            stored[f"{name}.valid"] = _VALID
        return stored

    def steps(self, arrays: Mapping[str, Any], *, what: str = "", may_be_empty: bool = False) -> tuple[Stored, int]:
        """Consecutive steps: array name to (T, *stored_step_shape), views where possible; and T.

        Args:
            arrays: A value per step for each feature.
            what: What is being done, for the errors.
            may_be_empty: Whether T may be 0.

        Raises:
            InvalidInputError: Every problem of the steps.
        """
        stored, num_steps = self._check(arrays, {}, whole=True, what=what)
        if num_steps == 0 and not may_be_empty:
            raise InvalidInputError(f"{what or self._what}: got arrays of 0 steps, expected at least 1")
        return stored, num_steps

    def batch(self, values: Mapping[str, Any], more: Mapping[str, Any], *, num_envs: int) -> Stored:
        """One step of each of N environments: array name to (N, *stored_step_shape), views where possible.

        Raises:
            InvalidInputError: Every problem of the batch.
        """
        try:
            stored, found = self._check(values, more, whole=True)
        except InvalidInputError as error:  # the rows of a batch are checked as the steps of an episode are
            text = str(error).replace("(T, …)", "(N, …)").replace("(T,)", "(N,)")
            raise InvalidInputError(text) from None
        if found != num_envs:
            raise InvalidInputError(f"append: got {found} rows, expected one for each of {num_envs} environments")
        return stored

    def _check(
        self, values: Mapping[str, Any], more: Mapping[str, Any], *, whole: bool, what: str = ""
    ) -> tuple[Stored, int]:
        what = what or self._what
        if not isinstance(values, Mapping):
            raise InvalidInputError(f"{what}: got {type(values).__name__}, expected a mapping of features to values")
        problems: list[str] = []
        given = self._named(values, more, problems, whole)
        stored: Stored = {}
        absent: list[str] = []
        for name, feature in self.features.items():
            if name not in given and not feature.nullable:
                problems.append(f"{name!r}: missing")
                continue
            if name not in given and whole:
                absent.append(name)
                continue
            try:
                if feature.nullable:
                    stored[f"{name}.valid"] = self._validity(given, name, whole)
                self._store(name, feature, given.get(name), whole, stored)
            except InvalidInputError as error:
                problems.append(f"{name!r}: {error}")
        for name in absent:  # a nullable feature that was left out carries no value at any step
            num_steps = max((len(array) for array in stored.values()), default=0)
            spec = self.specs[name]
            stored[f"{name}.valid"] = np.zeros(num_steps, bool)
            stored[name] = np.full((num_steps, *spec.stored_step_shape), spec.fill_value, spec.numpy_dtype)
        lengths = {name: len(array) for name, array in stored.items()}
        num_steps = max(lengths.values(), default=0)
        for name, length in lengths.items():
            if length != num_steps:
                problems.append(f"{name!r}: got {length} steps, others have {num_steps}")
        if problems:
            raise InvalidInputError.listing(problems, subject=what)
        return stored, num_steps

    def _named(
        self, values: Mapping[str, Any], more: Mapping[str, Any], problems: list[str], whole: bool
    ) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for source in (flatten(values), flatten(more)):
            for name, value in source.items():
                if name in given:
                    problems.append(f"{name!r}: given twice")
                elif name in self.features or (whole and name.removesuffix(".valid") in self._nullable):
                    given[name] = value
                elif name in self.specs:
                    problems.append(f"{name!r}: is computed, not recorded; leave it out")
                elif name in self._elsewhere:
                    clock = self._elsewhere[name]
                    problems.append(f"{name!r}: runs on the clock {clock!r}, not on {self.clock!r}; push it there")
                else:
                    hint = did_you_mean(name, self.features)
                    problems.append(f"{name!r}: not a feature of this dataset{hint}")
        return given

    def _validity(self, given: Mapping[str, Any], name: str, whole: bool) -> np.ndarray:
        """Which steps of a nullable feature carry a value: all of an array, unless `<name>.valid` says otherwise."""
        value = given.get(name)
        if not whole:
            return np.array([value is not None])
        if value is None:
            raise InvalidInputError(f"got None, expected an array; '{name}.valid', bool (T,), says which steps count")
        try:
            num_steps = len(value)
        except TypeError as error:
            raise InvalidInputError(f"got {type(value).__name__}, expected a value per step") from error
        valid = np.asarray(given.get(f"{name}.valid", np.ones(num_steps, bool)))
        if valid.dtype != bool or valid.shape != (num_steps,):
            raise InvalidInputError(f"'{name}.valid' is {valid.dtype} {valid.shape}, expected bool ({num_steps},)")
        return valid

    def _store(self, name: str, feature: Feature, value: Any, whole: bool, stored: Stored) -> None:
        spec = self.specs[name]
        if feature.nullable and value is None:
            if not whole and spec.chunk_steps == 1:
                return
            value = "" if spec.is_text else np.zeros(feature.shape, spec.numpy_dtype)
        if isinstance(feature, Text):
            stored[name] = _checked_text(value, whole)
            return
        array = _checked_array(feature, value, 1 if whole else 0)
        if not whole:
            array = array[None]
        if isinstance(feature, Image) and array.shape[1:] != feature.shape:  # it came in the other layout
            array = array.transpose(0, 3, 1, 2) if feature.layout == "CHW" else array.transpose(0, 2, 3, 1)
        if name in self._bgr:
            axis = 1 if spec.channels_last else -1
            array = np.flip(array, axis)
        stored[name] = spec.as_stored(array).astype(spec.numpy_dtype, copy=False)


def checkers(schema: Schema, bgr: Collection[str] = ()) -> dict[str, StepChecker]:
    """One for each clock of a schema, by its name; `step` is the first. Raises as they do."""
    clocks = [STEP, *schema.clocks]
    mine = {name: schema.features[name].clock if name in schema.features else STEP for name in bgr}
    return {clock: StepChecker(schema, [name for name in bgr if mine[name] == clock], clock=clock) for clock in clocks}


class WholeClock(NamedTuple):
    """All steps of one clock of an episode, checked: array name to (T, *stored_step_shape), the stamps among them."""

    stored: Stored
    num_steps: int
    timestamp_source: str


def whole_episode(
    by_clock: Mapping[str, StepChecker], schema: Schema, arrays: Mapping[str, Any], timestamp_ns: Any
) -> dict[str, WholeClock]:
    """A whole episode by clock; one (not `step`) on which nothing was given, or arrays of 0 steps, is left out.

    Raises:
        InvalidInputError: Every problem of the arrays of a clock, or of the stamps.
    """
    what = "record_episode"
    if not isinstance(arrays, Mapping):
        raise InvalidInputError(f"{what}: got {type(arrays).__name__}, expected a mapping of features to values")
    stamps = timestamp_ns if isinstance(timestamp_ns, Mapping) else {STEP: timestamp_ns}
    if unknown := [clock for clock in stamps if clock not in by_clock]:
        raise InvalidInputError(f"{what}: timestamp_ns: got a clock {unknown[0]!r}, expected {', '.join(by_clock)}")
    given: dict[str, dict[str, Any]] = {clock: {} for clock in by_clock}
    for name, values in flatten(arrays).items():
        feature = schema.features.get(name) or schema.features.get(name.removesuffix(".valid"))
        given[feature.clock if feature is not None else STEP][name] = values
    found = {}
    for clock, some in given.items():
        if not some and clock != STEP:
            continue
        stored, num_steps = by_clock[clock].steps(some, what=what, may_be_empty=clock != STEP)
        mine = stamps.get(clock)
        if num_steps == 0 and (mine is None or np.size(mine) == 0):
            continue
        if mine is None:
            made = np.round(np.arange(num_steps) * (1e9 / schema.rate_of(clock))).astype(np.int64)
        else:
            made = check_stamps(mine, num_steps)
        source = "rate" if mine is None else "caller"
        found[clock] = WholeClock({**stored, stamps_name(clock): made}, num_steps, source)
    return found


def check_stamps(stamps: Any, num_steps: int, previous: int | None = None) -> np.ndarray:
    """int64 (T,) stamps of consecutive steps, after the previous one.

    Raises:
        InvalidInputError: Not whole numbers, not one per step, or not increasing.
    """
    array = np.asarray(stamps)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InvalidInputError(f"{TIMESTAMP}: got {array.dtype} {array.shape}, expected int64 ({num_steps},)")
    if len(array) != num_steps:
        raise InvalidInputError(f"{TIMESTAMP}: got {len(array)} stamps for {num_steps} steps")
    if array.dtype == np.uint64 and (array >= 2**63).any():
        raise InvalidInputError(f"{TIMESTAMP}: got {array.max()}, expected numbers that int64 holds")
    array = array.astype(np.int64)
    if previous is not None and num_steps:
        check_stamp(int(array[0]), previous)
    backwards = np.flatnonzero(np.diff(array) <= 0)
    if len(backwards):
        step = int(backwards[0]) + 1
        raise InvalidInputError(
            f"{TIMESTAMP}: got {array[step]} at step {step}, expected more than {array[step - 1]}: time goes forward"
        )
    return array


def check_stamp(stamp: Any, previous: int | None) -> int:
    """One stamp, after the previous one.

    Raises:
        InvalidInputError: Not a whole number that fits int64, or not after it.
    """
    if isinstance(stamp, bool) or not isinstance(stamp, int | np.integer):
        raise InvalidInputError(f"{TIMESTAMP}: got {type(stamp).__name__} {stamp!r}, expected whole nanoseconds")
    if not -(2**63) <= stamp < 2**63:
        raise InvalidInputError(f"{TIMESTAMP}: got {stamp}, expected a number that int64 holds")
    if previous is not None and stamp <= previous:
        raise InvalidInputError(f"{TIMESTAMP}: got {stamp}, expected more than {previous}: time goes forward")
    return int(stamp)


def _checked_text(value: Any, whole: bool) -> np.ndarray:
    if whole and (isinstance(value, str) or not isinstance(value, Iterable)):
        raise InvalidInputError(f"got {type(value).__name__}, expected a text per step")
    texts = list(value) if whole else [value]
    for text in texts:
        if not isinstance(text, str):
            raise InvalidInputError(f"got {type(text).__name__}, expected text")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"got text that has no UTF-8 form: {error.reason}") from error
        if size > MAX_TEXT_BYTES:
            raise InvalidInputError(f"got a text of {size} bytes, expected at most {MAX_TEXT_BYTES}")
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _checked_array(feature: Feature, value: Any, leading: int) -> np.ndarray:
    expected = f"{feature.dtype} {feature.shape}"
    if value is None or isinstance(value, str | bytes):
        raise InvalidInputError(f"got {'None' if value is None else type(value).__name__}, expected {expected}")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"got {type(value).__name__}, expected {expected}: {error}") from error
    _check_dtype(feature, array)
    shapes = [feature.shape, feature.other_layout_shape] if isinstance(feature, Image) else [feature.shape]
    if array.ndim < leading or array.shape[leading:] not in shapes:
        steps = "(T, …) with a step of " if leading else ""
        raise InvalidInputError(f"got shape {array.shape}, expected {steps}{' or '.join(map(str, shapes))}")
    target = np.dtype(feature.dtype)
    if array.dtype.kind in "iu" and target.kind in "iu" and array.dtype != target and array.size:
        limits = np.iinfo(target)
        for extreme in (int(array.min()), int(array.max())):
            if not limits.min <= extreme <= limits.max:
                raise InvalidInputError(f"got {extreme}, which {target.name} cannot hold")
    if target.kind == "f":
        if array.dtype != target:
            with np.errstate(over="ignore"):
                cast = array.astype(target)
            overflow = np.isinf(cast) & ~np.isinf(array)
            if overflow.any():
                raise InvalidInputError(f"got {array[overflow].flat[0]:g}, which {target.name} cannot hold")
            array = cast
        if not feature.allow_nan and not np.isfinite(array).all():
            first = int(np.flatnonzero(~np.isfinite(array))[0])
            place = tuple(int(axis) for axis in np.unravel_index(first, array.shape))
            where = f" at {place}" if place else ""
            raise InvalidInputError(
                f"got {array[place]}{where}, expected finite values (Feature(..., allow_nan=True) would keep it)"
            )
    return array


def _check_dtype(feature: Feature, array: np.ndarray) -> None:
    target = np.dtype(feature.dtype)
    if isinstance(feature, Image):
        fits = array.dtype == target
    else:
        both_integers = array.dtype.kind in "iu" and target.kind in "iu"
        fits = both_integers or (array.dtype.kind in "biuf" and np.can_cast(array.dtype, target, "same_kind"))
    if not fits:
        hint = ""
        if isinstance(feature, Image) and array.dtype.kind == "f":
            hint = "; for values from 0 to 1: (image * 255).round().astype(np.uint8)"
        raise InvalidInputError(f"got dtype {array.dtype}, expected {feature.dtype}{hint}")
