"""Refuses, in one sentence, answers that no working project can be made of."""

import json
import os
import re
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

NAME = json.loads(r""" {{ cookiecutter.project_name | tojson }} """)
TEXTS = {
    "description": json.loads(r""" {{ cookiecutter.description | tojson }} """),
    "author": json.loads(r""" {{ cookiecutter.author | tojson }} """),
}
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
PACKAGES = {
    *("cookiecutter", "data", "jsonargparse", "lightning", "matplotlib", "mlflow", "models", "numpy", "onnx"),
    *("onnxruntime", "onnxscript", "pil", "pytest", "pytorch_lightning", "rich", "sklearn", "tensorboard", "torch"),
    *("torchmetrics", "torchvision", "training", "wandb", "yaml"),
}


def problem() -> str | None:
    """What is wrong with the answers, and what would be right."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", NAME):
        return (
            f"project_name {NAME!r} is no portable folder name: take 1 to 64 letters, digits, '_' and '-', "
            "of which the first is a letter or '_'"
        )
    if NAME.lower() in DEVICES:
        return f"project_name {NAME!r} is the name of a device on Windows: take another"
    if NAME.lower() in PACKAGES | {module.lower() for module in sys.stdlib_module_names}:
        return f"project_name {NAME!r} would shadow the Python package of that name: take another"
    for question, text in TEXTS.items():
        # White space is collapsed when it is rendered; other control characters fit into neither TOML nor YAML.
        for character in "".join(text.split()):
            if unicodedata.category(character) in ("Cc", "Cs"):
                return f"{question} holds the control character {character!r}: leave it out"
    return None


if message := problem():
    # Cookiecutter removes the innermost folder alone of a name like a/b; rmdir takes empty ones only.
    folder = Path.cwd()
    os.chdir(folder.anchor)
    for empty in [folder, *folder.parents][: len(Path(NAME).parts)] if len(Path(NAME).parts) > 1 else []:
        with suppress(OSError):
            empty.rmdir()
    sys.exit(f"error: {message}")
