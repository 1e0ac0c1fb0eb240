"""Rendered pick-and-place episodes with honest failures, in the MuJoCo Fetch environment.

A scripted controller works in a world that is bent at random: a fading grip, a pushed arm, a block
seen where it is not. Nobody decides the outcome beforehand: the referee reads from the physics
whether and when an episode fails, and knows nothing of the disturbance::

    with PickAndPlace() as demo:
        steps = demo.rollout(seed=7)  # iterate it; the generator returns the Verdict

Needs ``pip install 'salus[sim]'``.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections import deque
from collections.abc import Generator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError
from . import policy as parties
from .policy import FAILURE_KINDS, TIME_BUDGET, Vector, Verdict

__all__ = ["ACTION_NAMES", "FAILURE_KINDS", "RATE_HZ", "SIGNAL_NAMES", "STATE_NAMES", "PickAndPlace", "Verdict"]

RATE_HZ = 25
"""Control steps per second (20 physics steps of 2 ms each)."""

STATE_NAMES = (
    "hand_x",  # m, world frame
    "hand_y",  # m
    "hand_z",  # m
    "hand_velocity_x",  # m/s
    "hand_velocity_y",  # m/s
    "hand_velocity_z",  # m/s
    "finger_width",  # m, 0 closed to 0.1 open
)

ACTION_NAMES = (
    "move_x",  # [-1, 1], 1 asks for 0.05 m
    "move_y",
    "move_z",
    "rotate_x",  # the rotations are always 0, as Fetch keeps the hand's orientation fixed; they
    "rotate_y",  # are here so that the layout is the usual one of a 7-dimensional
    "rotate_z",  # end-effector action
    "gripper",  # 1 opens, -1 closes
)

SIGNAL_NAMES = (
    "tracking_error",  # m, distance of the hand from where the controller wants it
    "finger_width",  # m, gap between the fingers
    "finger_force",  # N, mean normal force on the two finger pads, saturates at 100
    "finger_imbalance",  # N, difference of the two pad forces, saturates at 100
    "palm_distance",  # m, from the hand to the block by a noisy palm camera
    "palm_distance_change",  # m, the same minus its value 5 steps ago: slip, or approach
    "wrist_load",  # N, upward contact force on hand and fingers (a carried block pulls down), within +-200
    "joint_effort",  # Nm, norm of the torques that drive the seven arm joints
    "hand_speed",  # m/s
    "image_motion",  # grey levels, mean absolute difference to the previous frame
    "phase_time",  # s, since the controller entered its present phase
    "command_jerk",  # unitless, norm of the second difference of the past commands
)

_TAIL_STEPS = 9  # recorded after a failure, so that it lies inside the episode
_GRIP_STIFFNESS = 2000.0  # N/m; holds the block with 50 N where the Fetch model uses 700 N
# The whole table top, the hand at every height it works at, block and target are in sight.
_CAMERA = {"lookat": np.array([1.28, 0.75, 0.52]), "distance": 1.1, "azimuth": 150.0, "elevation": -30.0}
_HAND_CAMERA = (0.55, 200.0, -25.0)  # m, degrees, degrees
_ARM = ("shoulder_pan", "shoulder_lift", "upperarm_roll", "elbow_flex", "forearm_roll", "wrist_flex", "wrist_roll")
_FINGERS = ("robot0:l_gripper_finger_link", "robot0:r_gripper_finger_link")
_LOWER_ARM = (*(f"robot0:{name}_link" for name in ("gripper", *_ARM[4:])), *_FINGERS)


def require_sim(*, render: bool = True) -> None:
    """Checks that the simulator can be imported and, to render, picks an OpenGL backend for it.

    Raises:
        ImportError: the packages are missing or do not fit together; tells what to install.
        RuntimeError: there is no way to render without a display; tells what to install.
    """
    if render:
        _choose_backend()
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints a notice about environments not used here
            import gymnasium_robotics  # noqa: F401 - only whether it is there
        import mujoco
    except ImportError as error:
        raise MissingExtraError.of("the demo", extra="sim") from error
    # gymnasium-robotics 1.4 asks exactly this of MuJoCo, and from 3.12 on the answer is False.
    if np.int32(mujoco.mjtJoint.mjJNT_HINGE) not in (mujoco.mjtJoint.mjJNT_HINGE,):
        raise MissingExtraError(
            f"gymnasium-robotics does not work with MuJoCo {mujoco.__version__}: pip install 'mujoco<3.12'"
        )


def _choose_backend() -> None:
    """Sets MUJOCO_GL before MuJoCo is imported, unless the user did so."""
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    for settings in ({"MUJOCO_GL": "egl"}, {"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"}):
        # Tried in a process of its own: PyOpenGL cannot change its mind once it is imported.
        attempt = subprocess.run(
            [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"],
            env={**os.environ, **settings},
            capture_output=True,
            check=False,
        )
        if attempt.returncode == 0:
            os.environ.update(settings)
            return
        if b"No module named 'mujoco'" in attempt.stderr:
            return  # not a matter of rendering: the import below reports it
    raise RuntimeError(
        "cannot render without a display: apt-get install -y libegl1 libgl1 libgl1-mesa-dri (or set MUJOCO_GL)"
    )


class _SignalMeter:
    """Turns readings into the twelve signals; keeps only the past it needs."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._distances: deque[float] = deque(maxlen=6)
        self._commands: deque[Vector] = deque([np.zeros(4)] * 3, maxlen=3)
        self._frame: NDArray[np.int16] | None = None

    def note_command(self, command: Vector) -> None:
        """Remembers a command; it shows in the signals from the next step on."""
        self._commands.append(command)

    def measure(
        self,
        reading: parties.Reading,
        percept: parties.Percept,
        policy: parties.PickAndPlacePolicy,
        image: NDArray[np.uint8],
    ) -> NDArray[np.float32]:
        """Measures all signals of one step.

        Args:
            reading: the physical truth, of which each sensor sees its noisy part.
            percept: what the controller is told; gives the measured hand position.
            policy: the controller; gives its reference point and the time in its phase.
            image: the frame of this step, (3, H, W).

        Returns:
            (12,) float32 in the order of :data:`SIGNAL_NAMES`.
        """
        noise = self._random.normal(size=6)
        left, right = np.clip(np.array(reading.pad_forces) + 0.5 * noise[:2], 0.0, 100.0)
        distance = abs(float(np.linalg.norm(reading.block - reading.hand) + 0.002 * noise[2]))
        self._distances.append(distance)
        # Every second row and column is plenty for a mean.
        frame = image[:, ::2, ::2].astype(np.int16)
        motion = 0.0 if self._frame is None else float(np.abs(frame - self._frame).mean())
        self._frame = frame
        older, old, new = self._commands
        return np.array(
            [
                np.linalg.norm(policy.reference - percept.hand),
                reading.finger_width + 0.0003 * noise[3],
                0.5 * (left + right),
                abs(left - right),
                distance,
                distance - self._distances[0],
                np.clip(reading.lift_force + 0.5 * noise[4], -200.0, 200.0),
                reading.joint_effort * (1.0 + 0.02 * noise[5]),
                np.linalg.norm(reading.hand_velocity),
                motion,
                policy.phase_steps / RATE_HZ,
                np.linalg.norm(new - 2.0 * old + older),
            ],
            dtype=np.float32,
        )


class PickAndPlace:
    """The Fetch robot, its camera and its troubles; a context manager.

    Args:
        image_size: height and width of the images in pixels.
        render: False gives black images and no image_motion, many times faster; all else stays.

    Raises:
        ImportError: the simulator is not installed.
        RuntimeError: there is no way to render without a display.
    """

    def __init__(self, *, image_size: int = 224, render: bool = True) -> None:
        require_sim(render=render)
        import gymnasium
        import gymnasium_robotics
        import mujoco

        gymnasium.register_envs(gymnasium_robotics)
        self._mujoco = mujoco
        self._render = render
        self._hand_view: Any = None
        self._black = np.zeros((3, image_size, image_size), dtype=np.uint8)
        self._env: Any = gymnasium.make(
            "FetchPickAndPlace-v4",
            render_mode="rgb_array",
            width=image_size,
            height=image_size,
            default_camera_config=_CAMERA,
            max_episode_steps=10 * TIME_BUDGET,
            disable_env_checker=True,
        )
        self._world = cast("Any", self._env.unwrapped)
        self._model, self._data = self._world.model, self._world.data
        # The model's block is dark grey, as the fingers; its guide lines are no part of the scene.
        self._model.material("block_mat").rgba[:] = (0.95, 0.55, 0.1, 1.0)
        self._model.geom_rgba[self._model.geom_bodyid == self._model.body("robot0:mocap").id, 3] = 0.0

    def __enter__(self) -> PickAndPlace:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the renderers."""
        if self._hand_view is not None:
            self._hand_view.close()
        self._env.close()

    @property
    def time_ns(self) -> int:
        """Simulated time of the step yielded last, nanoseconds."""
        return round(float(self._data.time) * 1e9)

    def rollout(self, seed: int) -> Generator[dict[str, NDArray[Any]], None, Verdict]:
        """Plays one episode.

        Args:
            seed: fixes the scene, the disturbance and the sensor noise, and so the episode.

        Yields:
            One dictionary per control step, observed before the action: images uint8 (3, H, W) RGB;
            states float32 (7,), see STATE_NAMES; actions float32 (7,), see ACTION_NAMES, as commanded
            (a disturbed world may carry out less); signals float32 (12,), see SIGNAL_NAMES.

        Returns:
            The verdict. After a failure the episode goes on for a few steps.
        """
        scene, trouble, sensors = (np.random.default_rng([seed, part]) for part in range(3))
        target = self._reset(seed, scene)
        disturbance, meter = parties.Disturbance(trouble), _SignalMeter(sensors)
        reading = self._read()
        referee = parties.Referee(reading.block, target)
        policy = parties.PickAndPlacePolicy(reading.hand)
        outcome, tail, step = None, _TAIL_STEPS, 0
        while outcome is None or (not outcome.success and tail > 0):
            effects = disturbance.effects(step, policy.phase)
            percept = parties.Percept(
                hand=reading.hand + sensors.normal(scale=0.0005, size=3),
                block=reading.block + sensors.normal(scale=0.002, size=3) + effects.block_bias,
                target=target,
                visible=effects.visible,
            )
            image = self._image()
            command = policy.act(percept)
            signals = meter.measure(reading, percept, policy, image)
            states = [*percept.hand, *reading.hand_velocity, reading.finger_width]
            yield {
                "images": image,
                "states": np.array(states, dtype=np.float32),
                "actions": np.array([*command[:3], 0.0, 0.0, 0.0, command[3]], dtype=np.float32),
                "signals": signals,
            }
            self._step(command, effects)
            reading = self._read()
            meter.note_command(command)
            tail -= outcome is not None
            outcome = outcome or referee.judge(step, reading, float(command[3]))
            step += 1
        return outcome

    def hand_image(self) -> NDArray[np.uint8]:
        """What a second camera, which follows the hand, sees at the step yielded last: uint8 (H, W, 3) RGB.

        (The camera in Fetch's own gripper looks at one plain surface in most steps: no image to measure anything with.)
        """
        if self._hand_view is None:
            self._hand_view = self._mujoco.Renderer(self._model, *self._black.shape[1:])
        camera = self._mujoco.MjvCamera()
        camera.lookat[:] = self._data.site("robot0:grip").xpos
        camera.distance, camera.azimuth, camera.elevation = _HAND_CAMERA
        self._hand_view.update_scene(self._data, camera=camera)
        image: NDArray[np.uint8] = self._hand_view.render()
        return image.copy()

    def _reset(self, seed: int, random: np.random.Generator) -> Vector:
        """Places block and target, both on the table and apart; returns the target."""
        self._env.reset(seed=seed)
        self._apply(parties.Effects())
        for _ in range(3):  # the arm falls into place
            self._env.step(np.array([0.0, 0.0, 0.0, 1.0], dtype=np.float32))
        block = self._data.body("object0").xpos
        target = block.copy()
        while np.linalg.norm(target - block) < 0.12:
            target[:2] = self._world.initial_gripper_xpos[:2] + random.uniform(-0.15, 0.15, size=2)
        self._world.goal = target.copy()  # drawn as a red ball
        return np.array(target)

    def _step(self, command: Vector, effects: parties.Effects) -> None:
        self._apply(effects)
        executed = command.copy()
        executed[:3] = effects.drive_scale * command[:3] + effects.drive_push / parties.METRES_PER_COMMAND
        self._env.step(executed.astype(np.float32))

    def _apply(self, effects: parties.Effects) -> None:
        model = self._model
        stiffness = _GRIP_STIFFNESS * effects.grip_scale
        model.actuator_gainprm[:, 0], model.actuator_biasprm[:, 1] = stiffness, -stiffness
        # MuJoCo takes the larger friction of two bodies in contact: on the table nothing changes.
        for name in ("object0", *_FINGERS):
            model.geom(name).friction[0] = effects.friction
        self._data.body("object0").xfrc_applied[:3] = effects.block_force

    def _image(self) -> NDArray[np.uint8]:
        if not self._render:
            return self._black
        return np.ascontiguousarray(self._env.render().transpose(2, 0, 1))

    def _read(self) -> parties.Reading:
        model, data = self._model, self._data
        # A step leaves the contacts and forces of its last substep's beginning: bring them up to date.
        self._mujoco.mj_forward(model, data)
        block, table = model.body("object0").id, model.body("table0").id
        arm = {model.body(name).id: name for name in _LOWER_ARM}
        pads = dict.fromkeys(_FINGERS, 0.0)
        lift, table_force, press, force = 0.0, 0.0, 0.0, np.zeros(6)
        for index, contact in enumerate(data.contact[: data.ncon]):
            bodies = [int(model.geom_bodyid[geom]) for geom in contact.geom]
            touching = [body for body in bodies if body in arm]
            if len(touching) != 1:
                continue
            self._mujoco.mj_contactForce(model, data, index, force)
            # The frame's rows are the contact axes, the first is the normal out of geom 1.
            world = force[:3] @ contact.frame.reshape(3, 3)
            sign = 1.0 if bodies[1] in arm else -1.0
            lift += sign * float(world[2])
            if table in bodies:
                table_force = max(table_force, float(force[0]))
            elif block in bodies:
                press = max(press, sign * float(force[0] * contact.frame[2]))
                if arm[touching[0]] in pads:
                    pads[arm[touching[0]]] += float(force[0])
        joints = [model.joint(f"robot0:{name}_joint").dofadr[0] for name in _ARM]
        velocity, grip = np.zeros(6), model.site("robot0:grip").id
        self._mujoco.mj_objectVelocity(model, data, self._mujoco.mjtObj.mjOBJ_SITE, grip, velocity, 0)
        left, right = pads.values()
        return parties.Reading(
            hand=data.site("robot0:grip").xpos.copy(),
            hand_velocity=velocity[3:],
            block=data.body("object0").xpos.copy(),
            block_speed=float(np.linalg.norm(data.joint("object0:joint").qvel[:3])),
            finger_width=float(sum(data.joint(f"robot0:{side}_gripper_finger_joint").qpos[0] for side in "lr")),
            pad_forces=(left, right),
            lift_force=lift,
            table_force=table_force,
            press_force=press,
            joint_effort=float(np.linalg.norm(data.qfrc_constraint[joints])),
        )
