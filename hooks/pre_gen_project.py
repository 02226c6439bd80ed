"""Refuse answers from which no working project can be made, in one sentence."""

import os
import sys
import unicodedata


def read(digits: str) -> str:
    """Decode text from hexadecimal digits, so that this file is valid Python with any answer."""
    return bytes.fromhex(digits).decode("utf-8", "surrogatepass")


NAME = read("{{ cookiecutter.project_name.encode('utf-8', 'surrogatepass').hex() }}")
TEXTS = {
    "description": read("{{ cookiecutter.description.encode('utf-8', 'surrogatepass').hex() }}"),
    "author": read("{{ cookiecutter.author.encode('utf-8', 'surrogatepass').hex() }}"),
}
# Cruft does not name its output folder.
OUTPUT = read("{{ (cookiecutter._output_dir | default('')).encode('utf-8', 'surrogatepass').hex() }}")
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))}
# fmt: off
PACKAGES = {
    "anyio", "charset_normalizer", "conftest", "cookiecutter", "data", "faker", "fastapi", "fastapi_offline",
    "filelock", "jsonargparse", "lightning", "lightning_fabric", "matplotlib", "mlflow", "models", "numpy", "onnx",
    "onnxruntime", "onnxscript", "optuna", "packaging", "pandas", "pil", "pycocotools", "pydantic", "pytest",
    "pytorch_lightning", "rich", "scipy", "sklearn", "starlette", "statsmodels", "tensorboard", "tokenizers",
    "torch", "torchmetrics", "torchvision", "training", "uvicorn", "wandb", "yaml",
}
# fmt: on


def problem() -> str | None:
    """Return an error in the answers, and how to correct it."""
    portable = NAME.isascii() and NAME.replace("-", "_").isidentifier() and len(NAME) <= 64
    if not portable or NAME.startswith("-"):
        return (
            f"project_name {NAME!r} is not a portable folder name: use 1 to 64 letters, digits, '_' and '-', "
            "starting with a letter or '_'"
        )
    if NAME.lower() in DEVICES:
        return f"project_name {NAME!r} is the name of a device on Windows: use another one"
    if NAME.lower() in PACKAGES | {module.lower() for module in sys.stdlib_module_names}:
        return f"project_name {NAME!r} would shadow the Python package of that name: use another one"
    for question, text in TEXTS.items():
        # White space is collapsed when it is rendered; other control characters fit into neither TOML nor YAML.
        for character in "".join(text.split()):
            if unicodedata.category(character) in ("Cc", "Cs"):
                return f"{question} contains the control character {character!r}: remove it"
    return None


if message := problem():
    # Cookiecutter removes only the innermost folder of a name like a/b; rmdir removes only empty ones.
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
