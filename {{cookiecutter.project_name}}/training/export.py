"""Writes a checkpoint in another format: `python training/export.py --format weights|model|onnx|pt2`."""

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from models.my_model import MyModel
from training.run import checkpoint_parser, load_checkpoint, newest_checkpoint, run

SUFFIXES = {"weights": ".weights.pth", "model": ".model.pth", "onnx": ".onnx", "pt2": ".pt2"}


def main(args: list[str] | None = None) -> None:
    parser = checkpoint_parser("Writes a checkpoint in another format, and checks that it gives the same outputs.")
    parser.add_argument(
        "--format",
        type=Literal["weights", "model", "onnx", "pt2"],
        default="onnx",
        help="The state_dict, the whole module by torch.save, an ONNX file, or a torch.export program.",
    )
    parser.add_argument("--output", type=Path, help="File to write; by default it lies beside the checkpoint.")
    options = parser.parse_args(args)
    source = options.ckpt_path or newest_checkpoint()
    model, _ = load_checkpoint(source)
    module, example = model.export_module()
    output = options.output or source.with_suffix(SUFFIXES[options.format])
    partial = output.with_name(f"partial-{output.name}")

    with torch.no_grad():
        expected = module.eval()(example)
        write(options.format, partial, model, module, example)
        actual = read_and_run(options.format, partial, model, example)
    try:
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
    except AssertionError as error:
        partial.unlink()
        raise OSError(f"{output} was not written: its outputs would differ from the checkpoint's. {error}") from error
    partial.replace(output)
    difference = (actual - expected).abs().max()
    print(f"{output}\nread back, its outputs differ from the checkpoint's by {difference:.1e} at most")


def write(form: str, file: Path, model: MyModel, module: nn.Module, example: Tensor) -> None:
    """Writes the weights of `model`, or `module`, which takes inputs like `example` in batches of any size."""
    if form == "weights":
        torch.save(model.state_dict(), file)
    elif form == "model":
        torch.save(module, file)
    else:
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        if form == "pt2":
            torch.export.save(program, file)
        else:
            onnx = torch.onnx.export(program, input_names=["input"], output_names=["output"], verbose=False)
            assert onnx is not None  # as it always is from a program
            onnx.save(file, external_data=False)


def read_and_run(form: str, file: Path, model: MyModel, example: Tensor) -> Tensor:
    """What a file that `write` made gives for `example`, read as its user would read it."""
    if form == "weights":
        fresh = MyModel(**model.hparams)
        fresh.load_state_dict(torch.load(file, weights_only=True))
        return fresh.eval().export_module()[0](example)
    if form == "model":
        return torch.load(file, weights_only=False)(example)  # written a moment ago, by this very process
    if form == "pt2":
        return torch.export.load(file).module()(example)
    import onnxruntime

    (output,) = onnxruntime.InferenceSession(file).run(None, {"input": example.numpy()})
    return torch.from_numpy(output)


if __name__ == "__main__":
    run(main)
