"""The leanest loop for the network of `mnist-cnn`: `lean_loop.py DATA EPOCHS BATCH_SIZE PRECISION`.

The notes' network, the project's optimizer and schedule on tensors in memory, and nothing else: no log, no bar, no
checkpoint, no Lightning loop. After each epoch the validation samples are classified, as the project does.
"""

import sys

import torch
from torch import nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.datasets import MNIST

torch.manual_seed(0)
epochs, batch_size = map(int, sys.argv[2:4])
mixed = sys.argv[4] == "bf16-mixed"
source = MNIST(sys.argv[1], train=True)
order = torch.randperm(len(source.data), generator=torch.Generator().manual_seed(0))
val, train = order.split([len(order) // 24, len(order) - len(order) // 24])
images, targets = source.data.unsqueeze(1), source.targets


def prepare(batch: torch.Tensor) -> torch.Tensor:
    return (images[batch].float() / 255 - 0.1307) / 0.3081


net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5408, 10))
optimizer = Adam(net.parameters(), lr=0.004, betas=(0.9, 0.99))
schedule = OneCycleLR(optimizer, max_lr=0.004, total_steps=epochs * -(-len(train) // batch_size))
for _ in range(epochs):
    for batch in train[torch.randperm(len(train))].split(batch_size):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = net(prepare(batch))
        nn.functional.cross_entropy(logits.float(), targets[batch]).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        right = sum(int((net(prepare(batch)).argmax(1) == targets[batch]).sum()) for batch in val.split(batch_size))
print("accuracy", right / len(val))
