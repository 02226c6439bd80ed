"""Prints the metrics of a checkpoint: `python training/evaluate.py [--ckpt_path FILE] [--split val|test]`."""

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.run import checkpoint_parser, print_metrics, restore_run, run


def main(args: list[str] | None = None) -> None:
    parser = checkpoint_parser("Prints the metrics of a checkpoint.")
    parser.add_argument("--split", type=Literal["val", "test"], default="test", help="Samples to evaluate on.")
    options, trainer, model, data = restore_run(parser, args)
    evaluate = trainer.test if options.split == "test" else trainer.validate
    (metrics,) = evaluate(model, datamodule=data, verbose=False)
    print_metrics(metrics)


if __name__ == "__main__":
    run(main)
