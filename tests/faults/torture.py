"""The long form of the tests beside it: `python tests/faults/torture.py [--kills 60] [--seed 0] [--variants NAME...]`.

Bakes every variant, trains it undisturbed, and then again under SIGKILLs at random instants, resuming after each.
Its last line tells the kills, the resumes, the runs that ended with other weights or metrics, and the checkpoints that
could not be read. The exit status is 1 if there were any of the two last.
"""

import argparse
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from cookiecutter.main import cookiecutter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import TEMPLATE, VARIANTS
from data_files import WRITERS
from faults.kills import Report, Runner, compare, runs, survive

FLAGS = [
    "--trainer.max_epochs=4",
    "--trainer.limit_train_batches=12",
    "--trainer.limit_val_batches=2",
    "--trainer.limit_test_batches=2",
    "--trainer.log_every_n_steps=1",
    "--checkpoint_minutes=0.001",
]
SETTINGS: dict[str, list[str]] = {
    "as it is": [],
    "workers, moving average": ["--data.num_workers=2", "--trainer.callbacks=EMAWeightAveraging"],
    "accumulated gradients, cosine": ["--trainer.accumulate_grad_batches=3", "--model.scheduler=cosine"],
    "constant rate": ["--model.scheduler=none"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="at least; a run takes three at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    options = parser.parse_args()
    rng, report, rounds = random.Random(options.seed), Report(), Counter[str]()
    with TemporaryDirectory() as folder:
        projects = {}
        for variant in options.variants:
            name = f"tortured_{variant.replace('-', '_')}"
            answers = {"project_name": name, "variant": variant}
            project = cookiecutter(str(TEMPLATE), no_input=True, output_dir=folder, extra_context=answers)
            data = Path(folder, f"data_{name}")
            data.mkdir()
            projects[variant] = (Path(project), WRITERS[variant](data).flags)
        while report.kills < options.kills:
            variant = min(projects, key=lambda name: rounds[name])
            setting = list(SETTINGS)[(rounds[variant] + options.variants.index(variant)) % len(SETTINGS)]
            rounds[variant] += 1
            project, flags = projects[variant]
            runner = Runner(project, [*flags, *FLAGS, *SETTINGS[setting]])
            if runner.to_the_end(*runner.flags):
                sys.exit(runner.output)
            reference = runs(runner.project)[-1]
            survived = survive(runner, 3, runner.seconds, signal.SIGKILL, report, rng)
            found = compare(reference, survived)
            report.mismatches += bool(found)
            print(f"{variant}, {setting}: {', '.join(found) or 'the same'} ({report})", flush=True)
    print(report)
    sys.exit(bool(report.mismatches or report.unreadable))


if __name__ == "__main__":
    main()
