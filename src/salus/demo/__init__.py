"""The demo: rendered pick-and-place episodes, recorded in parallel, and a failure predictor trained on them.

Written to be copied from: `record.py` shows recording from several processes, `train.py` training, `picture.py` what an
episode looks like. `sim.py` and `policy.py` are the robot.
"""
