"""The rules of SALUS. Importing this adds them. docs/decisions/0028 says where the thresholds come from."""

from . import clocks, episodes, images, labels, motion, values  # noqa: F401
