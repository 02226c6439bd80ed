"""The commands that the READMEs show run as they are written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import TEMPLATE, Bake

pytestmark = pytest.mark.slow

# These need GPUs, several machines or minutes; other tests run them with smaller settings.
ELSEWHERE = ("gpu", "torchrun", "devices 4", "sweep.py", "--resume", "pytest", "ckpt_path", "serve.py")


def run(script: str, folder: Path) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_commands_to_use_the_template_train_a_project(tmp_path: Path) -> None:
    page = (TEMPLATE / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"## Use it\n\n```bash\n(.*?)```", page, re.DOTALL)
    assert "gh:org/template " in block
    assert "test/acc" in run(block.replace("gh:org/template ", f"'{TEMPLATE}' --no-input "), tmp_path)


def commands(page: str) -> list[str]:
    """Return the commands of a page's tables and blocks, without comments and those that other tests run."""
    found = re.findall(r"`(python training/[^`\n]*)`", page)
    for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL):
        found += [line.split("  #")[0].strip() for line in block.splitlines() if line.startswith("python training/")]
    return sorted({command for command in found if not any(word in command for word in ELSEWHERE)})


def test_commands_of_both_pages_run(bake: Bake, tmp_path: Path) -> None:
    project = bake(fresh=True, project_name="typed")
    pages = [TEMPLATE / "README.md", project.path / "README.md"]
    todo = sorted({command for page in pages for command in commands(page.read_text(encoding="utf-8"))})
    assert len(todo) >= 8
    picture = tmp_path / "digit.png"
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(picture)
    run("python training/train.py --trainer.max_epochs 1", project.path)
    (trained,) = project.runs()
    for command in todo:
        short = " --trainer.max_epochs 1" if "train.py" in command else ""
        typed = re.sub(r"INPUTS?(\.\.\.)?", str(picture), command.replace("RUN", trained.name))
        run(typed + short, project.path)
