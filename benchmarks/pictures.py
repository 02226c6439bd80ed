"""Decodes a folder of JPEGs into training batches with two workers: `pictures.py PROJECT FOLDER torchvision|project`.

Both enlarge or shrink to 256 pixels, crop 224 at random, mirror half of the pictures and normalise them. It prints
the seconds of a second epoch, as the first one starts the workers.
"""

import sys
import time

import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import (
    Compose,
    ConvertImageDtype,
    Normalize,
    PILToTensor,
    RandomCrop,
    RandomHorizontalFlip,
    Resize,
)

project, folder, mode = sys.argv[1:]
sys.path.insert(0, project)
torch.manual_seed(0)
if mode == "torchvision":
    transform = Compose(
        [
            Resize(256),
            RandomCrop(224),
            RandomHorizontalFlip(),
            PILToTensor(),
            ConvertImageDtype(torch.float),
            Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    loader = DataLoader(ImageFolder(f"{folder}/train", transform), 64, True, num_workers=2, persistent_workers=True)

    def finish(batch: list[torch.Tensor]) -> torch.Tensor:
        return batch[0]
else:
    from data.data_module import MyDataModule

    class Training:
        world_size, global_rank, training = 1, 0, True

    data = MyDataModule(data_dir=folder, image_size=224, flip=True)
    data.setup("fit")
    data.trainer = Training()  # type: ignore[assignment]
    loader = data.train_dataloader()

    def finish(batch: list[torch.Tensor]) -> torch.Tensor:
        return data.on_after_batch_transfer(batch, 0)[0]


for _ in range(2):
    begun = time.perf_counter()
    count = sum(len(finish(batch)) for batch in loader)
print(count, time.perf_counter() - begun)
