"""The parts of `training/sweep.py`."""
