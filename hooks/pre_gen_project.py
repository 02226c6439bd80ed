"""Refuses, in one sentence, answers that no working project can be made of."""

import os
import sys
import unicodedata


def read(digits: str) -> str:
    """Text whose bytes are written as hexadecimal digits, so that whatever it holds, this file is Python."""
    return bytes.fromhex(digits).decode("utf-8", "surrogatepass")


NAME = read("{{ cookiecutter.project_name.encode('utf-8', 'surrogatepass').hex() }}")
TEXTS = {
    "description": read("{{ cookiecutter.description.encode('utf-8', 'surrogatepass').hex() }}"),
    "author": read("{{ cookiecutter.author.encode('utf-8', 'surrogatepass').hex() }}"),
}
# Cruft does not say where it bakes.
OUTPUT = read("{{ (cookiecutter._output_dir | default('')).encode('utf-8', 'surrogatepass').hex() }}")
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
# fmt: off
PACKAGES = {
    "charset_normalizer", "conftest", "cookiecutter", "data", "faker", "filelock", "jinja2", "jsonargparse",
    "lightning", "lightning_fabric", "matplotlib", "mlflow", "models", "numpy", "onnx", "onnxruntime", "onnxscript",
    "optuna", "packaging", "pandas", "pil", "pycocotools", "pytest", "pytorch_lightning", "rich", "scipy",
    "sklearn", "statsmodels", "tensorboard", "tokenizers", "torch", "torchmetrics", "torchvision", "training",
    "wandb", "yaml",
}
# fmt: on


def problem() -> str | None:
    """What is wrong with the answers, and what would be right."""
    portable = NAME.isascii() and NAME.replace("-", "_").isidentifier() and len(NAME) <= 64
    if not portable or NAME.startswith("-"):
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
    from contextlib import suppress
    from pathlib import Path

    output = Path(OUTPUT)
    parts = Path(NAME).parts if OUTPUT else ()
    if len(parts) > 1:
        os.chdir(Path.cwd().anchor)
        for depth in range(len(parts), 0, -1):
            folder = output.joinpath(*parts[:depth])
            with suppress(OSError):
                if not folder.samefile(output):
                    folder.rmdir()
    sys.exit(f"error: {message}")
