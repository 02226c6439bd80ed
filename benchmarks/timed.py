"""Runs a training script and notes when its steps were: `python timed.py RESULT SCRIPT [ARGUMENT ...]`.

RESULT becomes a JSON object: seconds from the start of the interpreter's work to the first step and to the last one,
the number of steps, and the peak of resident memory in MB.
"""

import json
import resource
import runpy
import sys
import time
from pathlib import Path

started = time.perf_counter()

from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

times: list[float] = []
register_optimizer_step_post_hook(lambda *_: times.append(time.perf_counter() - started))
result, *sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
measured = {"first": times[0], "last": times[-1], "steps": len(times), "peak": peak, "times": times}
Path(result).write_text(json.dumps(measured), encoding="utf-8")
