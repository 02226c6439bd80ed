"""The long form of the tests beside it: `python tests/faults/torture.py [--kills 60] [--seed 0] [--variants NAME...]`.

Bakes every variant, and a project with plain Lightning classes pasted in. Trains each undisturbed, and then again under
SIGKILLs at random instants, resuming after each. Its last line tells the kills, the resumes, the runs that ended with
other weights or metrics, and the checkpoints that could not be read. The exit status is 1 if there were any of the last
two.
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

from test_any_code import DATA, MODEL, fill

from conftest import TEMPLATE, VARIANTS, Project
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
PASTED = "pasted classes"
PLAIN_SETTINGS = {
    "as it is": [],
    "moving average": ["--trainer.callbacks=EMAWeightAveraging"],
    "accumulated gradients": ["--trainer.accumulate_grad_batches=3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="at least; a run takes three at a time")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, PASTED], default=[*VARIANTS, PASTED])
    options = parser.parse_args()
    rng, report, rounds = random.Random(options.seed), Report(), Counter[str]()
    with TemporaryDirectory() as folder:
        projects: dict[str, tuple[Path, list[str]]] = {}
        for variant in options.variants:
            name = f"tortured_{variant.replace('-', '_')}"
            answers = {"project_name": name.replace(" ", "_"), "variant": VARIANTS[0] if variant == PASTED else variant}
            project = cookiecutter(str(TEMPLATE), no_input=True, output_dir=folder, extra_context=answers)
            if variant == PASTED:
                fill(Project(Path(project), Path(folder)), f"{MODEL}    pass\n", f"{DATA}    pass\n")
                projects[variant] = (Path(project), [])
                continue
            data = Path(folder, f"data_{name}")
            data.mkdir()
            projects[variant] = (Path(project), WRITERS[variant](data).flags)
        while report.kills < options.kills:
            variant = min(projects, key=lambda name: rounds[name])
            settings = PLAIN_SETTINGS if variant == PASTED else SETTINGS
            setting = list(settings)[(rounds[variant] + options.variants.index(variant)) % len(settings)]
            rounds[variant] += 1
            project, flags = projects[variant]
            runner = Runner(project, [*flags, *FLAGS, *settings[setting]])
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
