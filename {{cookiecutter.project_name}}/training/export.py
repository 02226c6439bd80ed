"""Write a checkpoint in another format: `python training/export.py --format weights|model|onnx|pt2`."""

import sys
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from pickle import PicklingError
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.export import Dim

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI
from training.engine.interrupts import run_command

PLAIN = "without Lightning: import "
FORMATS = {  # the suffix of a file, and how it is used
    "weights": (".weights.pth", PLAIN + "torch; state_dict = torch.load({file}, weights_only=True)"),
    "model": (".model.pth", "in the project: import torch; outputs = torch.load({file}, weights_only=False)({inputs})"),
    "onnx": (".onnx", PLAIN + "numpy, onnxruntime; outputs = onnxruntime.InferenceSession({file}).run(None, {inputs})"),
    "pt2": (".pt2", PLAIN + "torch; outputs = torch.export.load({file}).module()({inputs})"),
}


class ExportCLI(CheckpointCLI):
    description = "Write a checkpoint in another format, and check that the file gives the same results."

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        help_ = "weights: state_dict; model: whole module by torch.save; onnx: ONNX file; pt2: torch.export program."
        parser.add_argument("--format", type=Literal["weights", "model", "onnx", "pt2"], default="weights", help=help_)
        help_ = "File to write; by default it lies beside the checkpoint."
        parser.add_argument("--output", type=Path | None, default=None, help=help_)


def main(args: list[str] | None = None) -> None:
    cli = ExportCLI(MyModel, MyDataModule, args)
    form = cli.config.format
    if form == "onnx" and not (find_spec("onnxruntime") and find_spec("onnxscript")):
        raise OSError('onnx needs two more packages: pip install "onnxruntime>=1.20,<2" "onnxscript>=0.5,<1"')
    output = cli.config.output or cli.ckpt_path.with_suffix(FORMATS[form][0])
    cli.restore()
    module, example = cli.model, ()
    if form != "weights" and hasattr(cli.model, "export_module"):
        module, example = cli.model.export_module()
    elif form != "weights":
        example = find_example(cli)
        if cli.config.trainer.precision == "64-true":
            example = cli.trainer.precision_plugin.convert_input(example)
    unchecked = output.with_name(f"unchecked-{output.name}")
    try:
        unchecked.touch()
    except OSError as error:
        raise OSError(f"{output} cannot be written: {error.strerror}") from error
    try:
        difference = export(module.eval(), form, unchecked, example)
        if not difference < 1e-3:
            raise OSError(
                f"{output} is not written: its outputs differ from the checkpoint's by {difference:.1e}:"
                " use another --format"
            )
        unchecked.replace(output)
    finally:
        unchecked.unlink(missing_ok=True)
    checked = f"the outputs of the file differ from the checkpoint's by at most {difference:.1e}"
    if form == "weights":
        checked = "the file holds the weights of the checkpoint"
    print(f"{output}\nchecked: {checked}")
    print(describe_use(form, output.resolve(), example))


def find_example(cli: ExportCLI) -> tuple[Any, ...]:
    """Example inputs of the model: `example_input_array`, or the first batch of the test, val or train split."""
    example: Any = cli.model.example_input_array
    if example is None:
        splits = {"test": "test", "val": "validate", "train": "fit"}
        split = next(name for name in splits if is_overridden(f"{name}_dataloader", cli.datamodule))
        cli.datamodule.prepare_data()
        cli.datamodule.setup(splits[split])
        batch = next(iter(getattr(cli.datamodule, f"{split}_dataloader")()))
        example = batch[0] if isinstance(batch, list | tuple) else batch
    return example if isinstance(example, tuple) else (example,)


@torch.no_grad()
def export(module: nn.Module, form: str, file: Path, example: tuple[Any, ...]) -> float:
    """Write a module, read the file as its user would, and return the largest difference of outputs.

    Raises:
        OSError: The module does not take the example, the format cannot hold the module, or the weights in the
            file are not those that were written.
    """
    if form == "weights":
        torch.save(module.state_dict(), file)
        saved = torch.load(file, weights_only=True)
        pairs = [(saved[name], each) for name, each in module.state_dict().items() if isinstance(each, Tensor)]
        if not all(torch.allclose(*pair, rtol=0, atol=0, equal_nan=True) for pair in pairs):
            raise OSError(f"{file} does not hold the weights that were written to it: check the disk")
        return 0.0
    try:
        torch.manual_seed(0)  # for modules that draw random numbers
        expected = module(*example)
    except (AttributeError, NotImplementedError, TypeError) as error:
        hint = "set example_input_array in the model, or use --format weights"
        raise OSError(f"forward does not take the example inputs ({error}): {hint}") from error
    write(module, form, file, example)
    torch.manual_seed(0)
    return largest_difference(read(form, file, example), expected)


def write(module: nn.Module, form: str, file: Path, example: tuple[Any, ...]) -> None:
    """Write a module in evaluation mode.

    Raises:
        OSError: The format cannot hold the module.
    """
    if form == "model":
        try:
            torch.save(module, file)
        except (AttributeError, RuntimeError, PicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise OSError(f"this network cannot be pickled ({reason}): use --format weights") from error
        return
    try:
        sizes = tuple({axis: Dim.AUTO for axis, n in enumerate(tensor.shape) if n > 1} for tensor in example)
        with redirect_stderr(StringIO()):  # PyTorch prints the graph of a module that cannot be exported
            program = torch.export.export(module, example, dynamic_shapes=sizes)
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OSError(
            f"this network cannot be exported as {form} ({reason}): use --format weights or --format model"
        ) from error
    if form == "pt2":
        torch.export.save(program, file)
    else:
        names = [f"input{i or ''}" for i in range(len(example))]
        torch.onnx.export(
            program, (), file, input_names=names, output_names=["output"], external_data=False, verbose=False
        )


def read(form: str, file: Path, example: tuple[Any, ...]) -> Any:
    """Return the outputs of a written file for the example, reading the file as its user would."""
    if form == "model":
        return torch.load(file, weights_only=False)(*example)  # written by this process a moment ago
    if form == "pt2":
        return torch.export.load(file).module()(*example)
    from onnxruntime import InferenceSession

    try:
        session = InferenceSession(file)
    except Exception as error:  # the exceptions of ONNX Runtime have no common base
        raise OSError(f"ONNX Runtime cannot run this network ({error}): use --format pt2") from error
    feed = {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), example, strict=True)}
    outputs = [torch.from_numpy(output) for output in session.run(None, feed)]
    return outputs[0] if len(outputs) == 1 else outputs


def describe_use(form: str, file: Path, example: tuple[Any, ...]) -> str:
    """Return how to use a written file: what it needs, and a line of Python."""
    make = "numpy.ones({}, numpy.{})" if form == "onnx" else "torch.ones({}, dtype=torch.{})"
    inputs = ["inputs"] * len(example)  # for inputs that are not tensors
    for i, each in enumerate(example):
        if isinstance(each, Tensor):
            inputs[i] = make.format(tuple(each.shape), str(each.dtype).removeprefix("torch."))
    if form == "onnx":
        feed = ", ".join(f"'input{i or ''}': {each}" for i, each in enumerate(inputs))
        inputs = ["{" + feed + "}"]
    return FORMATS[form][1].format(file=repr(str(file)), inputs=", ".join(inputs))


def largest_difference(actual: Any, expected: Any) -> float:
    """The largest difference of two outputs, relative to the largest expected value if that is above 1."""
    if isinstance(expected, Tensor):
        return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item() if expected.numel() else 0.0
    if isinstance(expected, dict):
        actual, expected = actual.values(), expected.values()
    return max((largest_difference(a, b) for a, b in zip(actual, expected, strict=True)), default=0.0)


if __name__ == "__main__":
    run_command(main)
