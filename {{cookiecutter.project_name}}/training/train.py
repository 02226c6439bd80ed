"""Fits a model, then tests its best checkpoint. `python training/train.py --help` lists all options."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.run import RunCLI, load_checkpoint, print_metrics, run, save_learning_curves


def main(args: list[str] | None = None) -> None:
    cli = RunCLI(args)
    data, model, trainer, run_dir = cli.datamodule, cli.model, cli.trainer, cli.run_dir

    trainer.fit(model, datamodule=data)
    best = cli.best.best_model_path
    if not best:  # as under --trainer.fast_dev_run, which writes nothing
        trainer.test(model, datamodule=data, verbose=False)
        return
    model, checkpoint = load_checkpoint(best)
    (metrics,) = trainer.test(model, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return

    (run_dir / "test_metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    save_learning_curves(run_dir)
    for name, figure in model.figures().items():
        figure.savefig(run_dir / f"{name}.png", dpi=120)
    score = cli.best.best_model_score
    print(f"best epoch: {checkpoint['epoch']}, with {cli.best.monitor} {score:.4f}; its test metrics:")
    print_metrics(metrics)
    print(f"run folder: {run_dir}")
    print("next: python training/predict.py, python training/evaluate.py or python training/export.py")


if __name__ == "__main__":
    run(main)
