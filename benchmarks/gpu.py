"""Measures baked projects on one GPU, in turn with other programs: `gpu.py [--pairs 5] [--data FOLDER]`.

It prints a table: how much of the time of a run the GPU does not work, and how near ResNet-18 comes to a bare loop on a
batch that never changes. `--accelerator cpu --pairs 1 --batches 3` tries the script where there is no GPU; those
figures mean nothing.
"""

import argparse
import json
import runpy
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torchvision.models import resnet18

from bench import HERE, Bench, Pairs, Row, machine
from data_files import write_cifar_batches  # from a folder that bench adds to the path

FAST = ["--compile=reduce-overhead"]
RESNET = ["--trainer.precision=bf16-mixed", "--compile=default"]


class GPUBench(Bench):
    """Flags that all runs have."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        super().__init__(folder, options.data, options.pairs)
        self.accelerator: str = options.accelerator
        self.flags = [f"--trainer.accelerator={options.accelerator}", "--trainer.limit_test_batches=1"]
        if options.batches:
            self.flags += [f"--trainer.limit_{split}_batches={options.batches}" for split in ("train", "val")]


def busy(result: str, script: str, *arguments: str) -> None:
    """Run a script and write the seconds that the GPU worked for it, copies included."""
    sys.argv = [script, *arguments]
    used = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    with profile(activities=[used]) as profiler:
        runpy.run_path(script, run_name="__main__")
    events = profiler.key_averages()
    on_gpu = torch.cuda.is_available()
    total = sum(event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in events)
    Path(result).write_text(json.dumps(total / 1e6), encoding="utf-8")


def bare_resnet(device: str, batch_size: str, steps: str) -> None:
    """Print the pictures a second that ResNet-18 trains on, with one batch again and again."""
    network = resnet18(num_classes=10).to(device, memory_format=torch.channels_last)
    network.compile()
    images = torch.randn(int(batch_size), 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (int(batch_size),), device=device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for step in range(2 * int(steps)):
        if step == int(steps):  # the first half compiles and warms up
            begun = finished(device)
        with torch.autocast(device, torch.bfloat16):
            loss = nn.functional.cross_entropy(network(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(int(batch_size) * int(steps) / (finished(device) - begun))


def finished(device: str) -> float:
    """The time at which the device has done what was asked of it."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def outside(bench: GPUBench) -> Iterator[Row]:
    for variant in ("mnist-cnn", "fashion-mnist-mlp"):
        train = bench.bake(variant) / "training" / "train.py"
        flags = [f"--data.data_dir={bench.fashion()}", "--data.batch_size=1024", *bench.flags]
        for name, more in (("default", []), (" ".join(FAST), FAST)):
            found: Pairs = []
            for _ in range(bench.count):
                run = bench.timed(train, *flags, *more)
                file = bench.folder / "busy.json"
                bench.python(HERE / "gpu.py", "busy", file, train, *flags, *more)
                found.append((run["last"] - run["first"], json.loads(file.read_text(encoding="utf-8"))))
            yield Row(f"`{variant}`, batch 1024, {name}", "GPU at work", "1.11 or less", found, "s")


def resnet(bench: GPUBench) -> Iterator[Row]:
    folder, random = bench.folder / "cifar", np.random.default_rng(0)
    size = 256 if bench.accelerator == "cuda" else 8
    folder.mkdir()
    pictures, targets = random.integers(0, 256, (12_500, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, 12_500)
    write_cifar_batches(folder, pictures, targets, 12_000)
    train = bench.bake("cifar10-resnet18") / "training" / "train.py"
    flags = [f"--data.data_dir={folder}", f"--data.batch_size={size}", "--model.weights=null", "--trainer.max_epochs=3"]
    found: Pairs = []
    for _ in range(bench.count):
        run = bench.timed(train, *flags, *RESNET, *bench.flags)
        steps = run["steps"] // 3
        own = median(b - a for a, b in zip(run["times"][steps:], run["times"][steps + 1 :], strict=False))
        _, printed = bench.python(HERE / "gpu.py", "bare_resnet", bench.accelerator, size, min(steps, 40))
        found.append((size / own, float(printed.split()[-1])))
    yield Row("ResNet-18, 224 pixels, bfloat16", "bare loop, one batch", "0.85 or more", found, "pictures/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each program")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--accelerator", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batches", type=int, help="batches of an epoch, to try the script")
    options = parser.parse_args()
    if options.accelerator == "cuda" and not torch.cuda.is_available():
        sys.exit("error: there is no CUDA device; --accelerator cpu tries the script without one")
    if len(list(options.data.glob("*-ubyte*"))) < 4:
        sys.exit(f"error: {options.data} lacks the four files of Fashion-MNIST: name their folder by --data")
    device = torch.cuda.get_device_name() if options.accelerator == "cuda" else "no GPU"
    print(f"{device}; {machine()}; {options.pairs} pairs a figure")
    print("| figure | against | goal | ratio (range) | project | other |\n|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        bench = GPUBench(Path(folder), options)
        for measure in (outside, resnet):
            for row in measure(bench):
                print(row, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["busy"]:
        busy(*sys.argv[2:])
    elif sys.argv[1:2] == ["bare_resnet"]:
        bare_resnet(*sys.argv[2:])
    else:
        main()
