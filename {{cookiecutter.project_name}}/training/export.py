"""Writes a checkpoint in another format: `python training/export.py --format weights|model|onnx|pt2`."""

import sys
import warnings
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.export import Dim

from models.my_model import MyModel
from training.run import checkpoint_parser, load_checkpoint, newest_checkpoint, run

warnings.filterwarnings("ignore", message=".*were assigned during export")  # by what cannot be exported
Format = Literal["weights", "model", "onnx", "pt2"]


def main(args: list[str] | None = None) -> None:
    parser = checkpoint_parser("Writes a checkpoint in another format, and checks that it gives the same outputs.")
    help_ = "The state_dict, the whole module by torch.save, an ONNX file, or a torch.export program."
    parser.add_argument("--format", type=Format, default="onnx", help=help_)
    parser.add_argument("--output", type=Path, help="File to write; by default it lies beside the checkpoint.")
    options = parser.parse_args(args)
    source = options.ckpt_path or newest_checkpoint()
    suffix = {"weights": ".weights.pth", "model": ".model.pth", "onnx": ".onnx", "pt2": ".pt2"}[options.format]
    output = options.output or source.with_suffix(suffix)

    model, _ = load_checkpoint(source)
    unchecked = output.with_name(f"unchecked-{output.name}")
    difference = export(model, options.format, unchecked)
    if not difference < 1e-3:
        unchecked.unlink()
        raise OSError(f"{output} is not written, as its outputs differ from the checkpoint's by {difference:.1e}")
    unchecked.replace(output)
    print(f"{output}\nread back, its outputs differ from the checkpoint's by {difference:.1e} at most")


@torch.no_grad()
def export(model: MyModel, form: Format, file: Path) -> float:
    """Writes `file`, reads it back as its user would, and returns the largest difference of the outputs.

    It is relative to the largest output, if that is more than 1.

    Raises:
        OSError: The network cannot be written in this format.
    """
    module, example = model.export_module()
    expected = module.eval()(*example)
    if form == "weights":
        torch.save(model.state_dict(), file)
        fresh = MyModel(**model.hparams)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        actual = fresh.eval().export_module()[0](*example)
    elif form == "model":
        torch.save(module, file)
        actual = torch.load(file, weights_only=False)(*example)  # a file of our own, a moment old
    else:
        sizes = tuple({axis: Dim.AUTO for axis, n in enumerate(tensor.shape) if n > 1} for tensor in example)
        try:
            with redirect_stderr(StringIO()):  # where PyTorch shows the graph of what cannot be exported
                program = torch.export.export(module, example, dynamic_shapes=sizes)
        except (RuntimeError, TypeError) as error:
            raise OSError(f"{form} cannot hold this network, weights and model can ({type(error).__name__})") from error
        if form == "pt2":
            torch.export.save(program, file)
            actual = torch.export.load(file).module()(*example)
        else:
            from onnxruntime import InferenceSession

            names = [f"input{i or ''}" for i in range(len(example))]
            torch.onnx.export(
                program, (), file, input_names=names, output_names=["output"], external_data=False, verbose=False
            )
            feed = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
            actual = torch.from_numpy(InferenceSession(file).run(None, feed)[0])
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1)).item()


if __name__ == "__main__":
    run(main)
