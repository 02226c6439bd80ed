"""Fits a model, then tests its best checkpoint. `python training/train.py --help` lists all options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.run import RunCLI, print_metrics, run, save_learning_curves, write_json


def main(args: list[str] | None = None) -> None:
    cli = RunCLI(args)
    trainer, model, data, run_dir = cli.trainer, cli.model, cli.datamodule, cli.run_dir

    trainer.fit(model, datamodule=data)
    (metrics,) = trainer.test(model, datamodule=data, ckpt_path=cli.best.best_model_path or None, weights_only=True, verbose=False)
    if not trainer.is_global_zero or not run_dir.exists():  # as after --trainer.fast_dev_run
        return

    write_json(run_dir / "test_metrics.json", metrics)
    save_learning_curves(run_dir)
    for name, figure in model.figures().items():
        figure.savefig(run_dir / f"{name}.png", dpi=120)
    print_metrics(metrics)


if __name__ == "__main__":
    run(main)
