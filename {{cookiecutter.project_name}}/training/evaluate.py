"""Print the metrics of a checkpoint: `python training/evaluate.py [--ckpt_path FILE] [--split val|test]`."""

import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch.cli import LightningArgumentParser

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import CheckpointCLI, evaluate
from training.engine.interrupts import run_command
from training.engine.reports import print_metrics


class EvaluateCLI(CheckpointCLI):
    description = "Print the metrics of a checkpoint."

    def add_command_options(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--split", type=Literal["val", "test"], default="test", help="Split to evaluate.")


def main(args: list[str] | None = None) -> None:
    cli = EvaluateCLI(MyModel, MyDataModule, args)
    if metrics := evaluate(cli, cli.trainer, cli.config.split, cli.ckpt_path):
        print_metrics(metrics)


if __name__ == "__main__":
    run_command(main)
