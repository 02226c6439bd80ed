"""The folder of a run: its name, its description, and the lock against a second process."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from training.engine.files import fingerprint, read_json, write_json
from training.engine.interrupts import warn

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "logs"
NAME = "%Y-%m-%d_%H-%M-%S-%f"
COMMAND = shlex.join(["training/train.py", *sys.argv[1:]])


def new_run(logs: Path) -> Path:
    """Return a path for a run folder whose name is later than all others, even if the clock was set back.

    For a trial of training/sweep.py it is the folder that the sweep has chosen.
    """
    if "SWEEP_RUN" in os.environ:
        return Path(os.environ["SWEEP_RUN"])
    now = datetime.now()
    for run in newest_first(logs):
        try:
            now = max(now, datetime.strptime(run.name, NAME) + timedelta(microseconds=1))
            break
        except ValueError:  # a folder that was renamed
            continue
    return logs / now.strftime(NAME)


def make_folder(run: Path) -> Path:
    """Make the folder of a new run, with the next name if another run was started in the same microsecond."""
    try:
        run.mkdir(parents=True)
        return run
    except FileExistsError:
        begun = datetime.strptime(run.name, NAME)
    return make_folder(run.with_name((begun + timedelta(microseconds=1)).strftime(NAME)))


def newest_first(logs: Path) -> list[Path]:
    """Return the run folders in `logs`."""
    names = sorted((entry.name for entry in os.scandir(logs)), reverse=True) if logs.is_dir() else []
    return [logs / name for name in names if (logs / name / "run.json").exists()]


def find_run(logs: Path, name: str) -> Path:
    """Return the folder of a run by its name in `logs` or its path; without a name, the newest unfinished run.

    Raises:
        FileNotFoundError: There is no such run.
    """
    if name:
        for run in (logs / name, Path(name).expanduser().resolve()):
            if (run / "run.json").exists():
                return run
        raise FileNotFoundError(f"{name} is not a run in {logs}: --resume takes the name or path of a run folder")
    for run in newest_first(logs):
        if read_json(run / "run.json").get("state") != "finished":
            return run
    raise FileNotFoundError(f"{logs} has no unfinished run to resume")


def launched_job() -> tuple[str | None, bool]:
    """Return the job of SLURM or torchrun that started this process, and whether it was restarted."""
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID")
    restarts = [os.environ.get(f"{name}_RESTART_COUNT", "0") for name in ("SLURM", "TORCHELASTIC")]
    return job, restarts != ["0", "0"]


def restarted_run(logs: Path) -> Path | None:
    """Return the run that this command has started in the same job before a restart, if there is one."""
    job, restarted = launched_job()
    for run in newest_first(logs) if restarted else []:
        described = read_json(run / "run.json")
        if described.get("job") == job and described["command"] == COMMAND:
            return run
    return None


def lock_run(run: Path) -> FileLock:
    """Lock a run folder for this process. The operating system frees the lock when the process exits or is killed.

    Raises:
        OSError: Another process trains this run.
    """
    lock = FileLock(run / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        process = read_json(run / "run.json").get("process", {})
        raise OSError(
            f"{run.name} is being trained by process {process.get('id')} on {process.get('host')}: wait until it ends"
        ) from error
    for partial in run.rglob(".*.partial"):  # of a process that was killed while writing a file
        partial.unlink(missing_ok=True)
    return lock


def discard_run(run: Path) -> None:
    """Remove the folder of a run that failed before training started."""
    if not (run / "run.json").exists():
        shutil.rmtree(run, ignore_errors=True)


def describe_run(run: Path, config: Mapping[str, Any], changed: Mapping[str, Any], allow_changed_data: bool) -> None:
    """Write `run.json`, or add to it that the run is resumed.

    Args:
        run: Folder of the run.
        config: All settings.
        changed: Those that differ from the defaults of a new run.
        allow_changed_data: Whether the data may have changed since the run was started.

    Raises:
        OSError: The data have changed, and `allow_changed_data` is false.
    """
    options = (config.get("data") or {}).items()
    data = {key: ROOT / Path(value).expanduser() for key, value in options if isinstance(value, str)}
    data = {key: path for key, path in data.items() if not ROOT.is_relative_to(path.resolve())}  # logs/ changes
    now = {
        "code": fingerprint(*sorted(ROOT.glob("data/*.py")), *sorted(ROOT.glob("models/*.py"))),
        "data": {key: fingerprint(path) for key, path in data.items() if path.exists()},
        "packages": dict(sorted((package.name, package.version) for package in distributions())),
    }
    started = read_json(run / "run.json")
    if started:
        compare(run, started, now, data, allow_changed_data)
        started["resumed"].append(COMMAND)
    else:
        started = now | {"command": COMMAND, "changed": changed, "resumed": [], "git_commit": git_commit()}
        started["started"] = time_now()
    started |= {
        "state": "unfinished",
        "job": launched_job()[0],
        "seed": config["seed_everything"],
        "process": {"id": os.getpid(), "host": platform.node()},
        "python": platform.python_version(),
    }
    packages = {"packages": started.pop("packages")}  # last, as there are many
    write_json(run / "run.json", started | packages)


def compare(run: Path, before: dict[str, Any], now: dict[str, Any], data: dict[str, Path], allow: bool) -> None:
    """Warn if code or packages have changed since a run was started; refuse other data unless they are allowed."""
    if before["data"] != now["data"] and not allow:
        others = [f"{key} ({data[key]})" for key in data if before["data"].get(key) != now["data"].get(key)]
        raise OSError(
            f"data.{', data.'.join(others)} changed since {run.name} was started:"
            " to resume it with the new data, use --allow_changed_data true"
        )
    if edited := [key for key in ("code", "packages") if before[key] != now[key]]:
        warn(f"{' and '.join(edited)} changed since {run.name} was started, so results may differ")


def time_now() -> str:
    """Return the time in ISO format with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def git_commit() -> str | None:
    """Return the commit of the project, with "-dirty" if files were changed; None without git or a repository."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None
