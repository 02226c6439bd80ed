"""Fits a model, then tests its best checkpoint. `python training/train.py --help` lists all options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from training.resume import compare_runs, write_json
from training.run import RunCLI, load_checkpoint, print_metrics, run, save_learning_curves


def main(args: list[str] | None = None) -> None:
    cli = RunCLI(args)
    with cli.checkpoints.handling_signals():
        train(cli)


def train(cli: RunCLI) -> None:
    data, model, trainer, run_dir = cli.datamodule, cli.model, cli.trainer, cli.run_dir

    if cli.resumed and trainer.is_global_zero:
        print(f"going on with {run_dir.name} after step {cli.step}", flush=True)
    trainer.fit(model, datamodule=data, ckpt_path=cli.checkpoint, weights_only=True)
    best = cli.checkpoints.best_model_path
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        trainer.test(model, datamodule=data, verbose=False)
        return
    if not best:
        raise MisconfigurationException("no epoch was trained and validated: see --trainer.max_epochs and its limits")
    model, checkpoint = load_checkpoint(best)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return

    save_learning_curves(run_dir)
    for name, figure in model.figures().items():
        figure.savefig(run_dir / f"{name}.png", dpi=120)
    write_json(run_dir / "test_metrics.json", metrics)  # last: a run that has it is finished
    score = cli.checkpoints.best_model_score
    print(f"best epoch: {checkpoint['epoch']}, with {cli.checkpoints.monitor} {score:.4f}; its test metrics:")
    print_metrics(metrics)
    if cli.reproduced:
        compare_runs(cli.reproduced, run_dir)
    print(f"run folder: {run_dir}")
    print("next: python training/predict.py, python training/evaluate.py or python training/export.py")


if __name__ == "__main__":
    run(main)
