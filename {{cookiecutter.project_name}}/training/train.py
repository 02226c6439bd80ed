"""Fit a model, then test its best checkpoint. `python training/train.py --help` lists all options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.data_module import MyDataModule
from models.my_model import MyModel
from training.engine.evaluation import evaluate
from training.engine.interrupts import is_first_process, run_command
from training.engine.page import write_page
from training.engine.reports import draw_curves, print_metrics, save_figures
from training.engine.run import RunCLI


def main(args: list[str] | None = None) -> None:
    cli = RunCLI(MyModel, MyDataModule, args)
    model, trainer, run_dir = cli.model, cli.trainer, cli.run_dir

    if cli.resumed and is_first_process():
        print(f"resuming {run_dir.name} after step {cli.step}", flush=True)
    cli.run(trainer.fit, cli.checkpoint)
    if trainer.fast_dev_run:
        evaluate(cli, trainer, "test", None)
        return

    tester, checkpoint = cli.make_tester()
    if tester is None:
        return  # only the first process tests the model
    metrics = evaluate(cli, tester, "test", checkpoint)
    cli.finish(metrics)  # before the pictures, as these may fail
    best = cli.checkpoints
    if best.best_score is not None:
        print(f"best epoch: {best.best_epoch}, with {best.monitor} {best.best_score:.4f}")
    if metrics:
        print_metrics(metrics)
    figures = {"learning_curves": lambda: draw_curves(run_dir / "metrics.csv", best.best_step)}
    if (run_dir / "test_metrics.json").exists() and hasattr(model, "figures"):
        figures["figures"] = model.figures
    save_figures(run_dir, figures, trainer.loggers)
    write_page(run_dir)
    print(f"run folder: {run_dir}")
    print("next: python training/predict.py, python training/evaluate.py or python training/export.py")


if __name__ == "__main__":
    run_command(main)
