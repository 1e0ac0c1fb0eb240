"""The three parties of the demo: the controller acts, a disturbance interferes, the referee judges.

None of them knows the simulator, and none knows the others' minds: the controller sees noisy
positions, a disturbance says how the world is bent at a step, and the referee tells from physical
quantities what came of it. :mod:`salus.demo.sim` brings them together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

FAILURE_KINDS = ("collision", "drop", "miss", "timeout")
"""How an episode can fail.

* collision: arm or hand hits the table, or a fingertip lands on top of the block.
* drop: the block was held and lifted, then left the closed fingers before it stood at the target.
* miss: the hand closed and rose (or closed fully) without the block.
* timeout: the block does not rest at the target within the time budget.
"""

TIME_BUDGET = 200
"""Control steps (8 s) within which the block must rest at the target."""

METRES_PER_COMMAND = 0.05
"""Hand displacement in metres that a command of 1.0 asks for (fixed by the Fetch environment)."""

OPEN, CLOSE = 1.0, -1.0
"""The two gripper commands used."""


class Phase(IntEnum):
    """What the controller is busy with, in the order of a flawless episode."""

    APPROACH = 0
    DESCEND = 1
    GRASP = 2
    LIFT = 3
    CARRY = 4
    LOWER = 5
    RELEASE = 6
    RETREAT = 7


# Metres per control step at which the hand's reference point travels, by phase. Slow enough that a
# failure builds up over several steps; 0.004 m per step is 0.1 m/s at 25 Hz.
SPEED = (0.008, 0.004, 0.0, 0.005, 0.008, 0.004, 0.0, 0.006)
# Phases without a waypoint to reach last this many steps.
DURATION = {Phase.GRASP: 16, Phase.RELEASE: 10}

HOVER_HEIGHT = 0.10  # m above the block's centre, before descending
GRASP_HEIGHT = 0.008  # m above the block's centre: fingertips then clear the table by 15 mm
CARRY_HEIGHT = 0.12  # m above the target
RETREAT_HEIGHT = 0.09  # m above the target
ARRIVED = 0.008  # m, distance at which a waypoint counts as reached
LEASH = 0.03  # m, the reference waits when the hand lags this far behind
MISPLACED = 0.045  # m, after letting go the controller starts again if the block is farther off


@dataclass(frozen=True)
class Percept:
    """What the controller is told at one step.

    Attributes:
        hand: measured gripper position, (3,) in metres.
        block: perceived block centre, (3,) in metres.
        target: place position, (3,) in metres.
        visible: False while its detector finds nothing; the controller then stands still.
    """

    hand: Vector
    block: Vector
    target: Vector
    visible: bool


class PickAndPlacePolicy:
    """A state machine that follows waypoints with a speed-limited reference point.

    It looks at the block only until it descends, so whatever happens to the block afterwards
    goes unnoticed, as with many industrial pick-and-place scripts. When the block does not
    lie at the target after letting go, it starts over.

    Attributes:
        phase: the current :class:`Phase`.
        phase_steps: control steps spent in it, from 0.
        reference: where the hand should be now, (3,) in metres.
    """

    def __init__(self, hand: Vector) -> None:
        self.phase = Phase.APPROACH
        self.phase_steps = 0
        self.reference = hand.copy()
        self._block = np.zeros(3)

    def act(self, percept: Percept) -> Vector:
        """Decides the next command.

        Args:
            percept: what is known at this step.

        Returns:
            (4,) command: displacement xyz in units of 0.05 m, in [-1, 1], then the gripper
            command, 1 to open and -1 to close.
        """
        if percept.visible:
            self._advance(percept)
        command = np.empty(4)
        command[:3] = (self.reference - percept.hand) / METRES_PER_COMMAND
        command[3] = CLOSE if Phase.GRASP <= self.phase <= Phase.LOWER else OPEN
        return np.clip(command, -1.0, 1.0)

    def _advance(self, percept: Percept) -> None:
        if self.phase is Phase.APPROACH:
            self._block = percept.block.copy()
        waypoint = self._waypoint(percept)
        gap = waypoint - self.reference
        distance = float(np.linalg.norm(gap))
        if np.linalg.norm(self.reference - percept.hand) < LEASH and distance > 0.0:
            self.reference = self.reference + gap * min(1.0, SPEED[self.phase] / distance)
        self.phase_steps += 1
        if self._is_finished(waypoint, percept):
            self._enter_next(percept)

    def _waypoint(self, percept: Percept) -> Vector:
        up = np.array([0.0, 0.0, 1.0])
        waypoints = {
            Phase.APPROACH: self._block + HOVER_HEIGHT * up,
            Phase.DESCEND: self._block + GRASP_HEIGHT * up,
            Phase.LIFT: self._block + CARRY_HEIGHT * up,
            Phase.CARRY: percept.target + CARRY_HEIGHT * up,
            Phase.LOWER: percept.target + (GRASP_HEIGHT + 0.002) * up,
            Phase.RETREAT: percept.target + RETREAT_HEIGHT * up,
        }
        return waypoints.get(self.phase, self.reference)

    def _is_finished(self, waypoint: Vector, percept: Percept) -> bool:
        if self.phase in DURATION:
            return self.phase_steps >= DURATION[self.phase]
        return float(np.linalg.norm(waypoint - percept.hand)) < ARRIVED

    def _enter_next(self, percept: Percept) -> None:
        if self.phase is Phase.RETREAT:
            if np.linalg.norm(percept.block - percept.target) < MISPLACED:
                return  # done: stay here
            self.phase = Phase.APPROACH
        else:
            self.phase = Phase(self.phase + 1)
        self.phase_steps = 0


@dataclass
class Effects:
    """How the world differs from its nominal self during one control step.

    Attributes:
        grip_scale: factor on the stiffness of the finger motors, 1 is nominal.
        drive_scale: factor on the displacement that is carried out of a command.
        friction: sliding friction coefficient between fingers and block.
        block_force: external force on the block, (3,) in newtons.
        drive_push: added to the displacement carried out, (3,) in metres per step: somebody leans
            on the arm. (A force would not do, the drive of the Fetch model hardly yields to any.)
        block_bias: error of the perceived block position, (3,) in metres.
        visible: whether the controller's detector finds block and target.
    """

    grip_scale: float = 1.0
    drive_scale: float = 1.0
    friction: float = 1.0
    block_force: Vector = field(default_factory=lambda: np.zeros(3))
    drive_push: Vector = field(default_factory=lambda: np.zeros(3))
    block_bias: Vector = field(default_factory=lambda: np.zeros(3))
    visible: bool = True


# Per disturbance: the phases of which it waits for one, the ranges of the delay after that and of
# the ramp-up (both in steps), and its weakest and strongest size. The sizes reach from harmless to
# fatal on purpose: a disturbed episode may still succeed, so being disturbed does not give it away.
_CATALOGUE: dict[str, tuple[tuple[Phase, ...], tuple[int, int], tuple[int, int], tuple[float, float]]] = {
    "weak_grip": ((Phase.LIFT,), (0, 30), (20, 40), (0.5, 1.0)),  # share of the grip stiffness lost
    "slippery": ((Phase.APPROACH,), (0, 1), (1, 2), (0.45, 0.9)),  # share of the friction lost
    "tug": ((Phase.LIFT,), (5, 40), (15, 35), (30.0, 140.0)),  # N on the block, mostly downwards
    "nudge": ((Phase.DESCEND,), (5, 20), (3, 6), (19.0, 30.0)),  # N on the block, horizontal
    "misplaced": ((Phase.APPROACH,), (0, 1), (1, 2), (0.025, 0.07)),  # m, block seen beside its place
    "too_low": ((Phase.APPROACH,), (0, 1), (1, 2), (0.004, 0.025)),  # m, block seen below its place
    "push": ((Phase.DESCEND, Phase.LOWER), (0, 20), (10, 25), (0.005, 0.05)),  # m off course per step
    "sluggish": ((Phase.APPROACH,), (0, 60), (10, 40), (0.65, 0.97)),  # share of the motion lost
    "blackout": ((Phase.APPROACH,), (0, 60), (1, 2), (0.1, 0.6)),  # share of the time unseen
}
_UNDISTURBED_SHARE = 0.1
_BLACKOUT_PERIOD = 25  # steps; each begins with the blind part
_FORCE_HOLD = 20  # steps a force stays on after its ramp


class Disturbance:
    """One cause of trouble, drawn at random; it does not know whether it will succeed.

    Attributes:
        name: a key of the catalogue, or "none".
        size: its strength in the unit of the catalogue.
    """

    def __init__(self, random: np.random.Generator) -> None:
        self.name = "none"
        self.size = 0.0
        self._ready_at: int | None = None
        if random.uniform() >= _UNDISTURBED_SHARE:
            self.name = str(random.choice(list(_CATALOGUE)))
            phases, delay, ramp, sizes = _CATALOGUE[self.name]
            self._trigger = Phase(random.choice(phases))
            self._delay = int(random.integers(*delay))
            self._ramp = int(random.integers(*ramp))
            self.size = float(random.uniform(*sizes))
        angle = random.uniform(0.0, 2.0 * np.pi)
        self._sideways = np.array([np.cos(angle), np.sin(angle), 0.0])

    def effects(self, step: int, phase: Phase) -> Effects:
        """Gives the bent world of one step; call it once per step, in order.

        Args:
            step: control step of the episode, from 0.
            phase: the controller's phase; the disturbance starts once its own has been reached.

        Returns:
            The effects to apply during this step.
        """
        if self.name == "none":
            return Effects()
        if self._ready_at is None:
            if phase < self._trigger:
                return Effects()
            self._ready_at = step + self._delay
        age = step - self._ready_at
        if age < 0:
            return Effects()
        size = self.size * min(1.0, (age + 1) / self._ramp)
        force = size if age < self._ramp + _FORCE_HOLD else 0.0
        down = np.array([0.0, 0.0, -1.0])
        if self.name == "weak_grip":
            return Effects(grip_scale=1.0 - size)
        if self.name == "slippery":
            return Effects(friction=1.0 - size)
        if self.name == "tug":
            return Effects(block_force=force * (down + 0.3 * self._sideways))
        if self.name == "misplaced":
            # Mainly along the fingers' broad side; across it they would land on the block.
            return Effects(block_bias=size * self._sideways * [1.0, 0.35, 0.0])
        if self.name == "nudge":
            # Short, unlike a tug: it shifts the block and lets go of it.
            return Effects(block_force=(size if age < self._ramp + 3 else 0.0) * self._sideways)
        if self.name == "too_low":
            return Effects(block_bias=size * down)
        if self.name == "push":
            return Effects(drive_push=force * (down + 0.3 * self._sideways))
        if self.name == "sluggish":
            return Effects(drive_scale=1.0 - size)
        return Effects(visible=age % _BLACKOUT_PERIOD >= size * _BLACKOUT_PERIOD)


@dataclass(frozen=True)
class Verdict:
    """How an episode ended.

    Attributes:
        success: whether the block came to rest at the target in time.
        kind: one of :data:`FAILURE_KINDS`, None on success.
        step: index of the step at which the failure was detected, None on success.
    """

    success: bool
    kind: str | None = None
    step: int | None = None


@dataclass(frozen=True)
class Reading:
    """True physical quantities after a control step, from which sensors and referee draw."""

    hand: Vector  # (3,) m
    hand_velocity: Vector  # (3,) m/s
    block: Vector  # (3,) m
    block_speed: float  # m/s
    finger_width: float  # m
    pad_forces: tuple[float, float]  # N, block against left and right finger
    lift_force: float  # N, vertical contact force on hand and fingers
    table_force: float  # N, strongest contact of the lower arm with the table
    press_force: float  # N, strongest vertical push of the hand on the block
    joint_effort: float  # Nm


class Referee:
    """Decides from physics alone whether the episode is over; the first event counts."""

    _TABLE_FORCE = 10.0  # N
    _PRESS_FORCE = 40.0  # N, twice the block's weight
    _LIFTED = 0.02  # m above the table: in the air for sure
    _STANDS = 0.01  # m above the table: as good as on it
    _LOST_STEPS = 2  # so that a bouncing contact is not taken for a loss
    _RADIUS = 0.05  # m around the target, the environment's own threshold
    _HOLD = 12  # steps the block must rest there

    def __init__(self, block: Vector, target: Vector) -> None:
        self._resting_height, self._target = float(block[2]), target
        self._lifted, self._held_height = False, 0.0
        self._lost = self._rested = 0
        self._closed_at: float | None = None

    def judge(self, step: int, reading: Reading, gripper_command: float) -> Verdict | None:
        """Looks at the world after the action of ``step``; None while nothing is decided."""
        if reading.table_force > self._TABLE_FORCE or reading.press_force > self._PRESS_FORCE:
            return Verdict(False, "collision", step)
        at_target = bool(np.linalg.norm(reading.block - self._target) < self._RADIUS)
        kind = self._judge_grasp(reading, gripper_command, at_target)
        if kind is not None:
            return Verdict(False, kind, step)
        let_go = gripper_command > 0 and max(reading.pad_forces) == 0.0
        self._rested = self._rested + 1 if at_target and let_go and reading.block_speed < 0.02 else 0
        if self._rested >= self._HOLD:
            return Verdict(True)
        return Verdict(False, "timeout", step) if step + 1 >= TIME_BUDGET else None

    def _judge_grasp(self, reading: Reading, gripper_command: float, at_target: bool) -> str | None:
        if gripper_command != CLOSE:
            self._lifted, self._lost, self._closed_at = False, 0, None
            return None
        if self._closed_at is None:
            self._closed_at = float(reading.hand[2])
        held = min(reading.pad_forces) > 0.0
        height = float(reading.block[2]) - self._resting_height
        self._lifted = self._lifted or (held and height > self._LIFTED)
        empty = max(reading.pad_forces) == 0.0
        closed_on_nothing = empty and reading.finger_width < 0.01
        rose_without = not held and reading.hand[2] - self._closed_at > 0.03
        self._held_height = self._held_height if empty else height
        # Fingers that slip off a block which already stands at the target have dropped nothing.
        fell = empty and (self._held_height > self._STANDS or not at_target)
        lost = fell if self._lifted else closed_on_nothing or rose_without
        self._lost = self._lost + 1 if lost else 0
        if self._lost < self._LOST_STEPS:
            return None
        return "drop" if self._lifted else "miss"
