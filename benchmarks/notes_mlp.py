"""The quickstart's loop of the notes, with its network and recipe: `notes_mlp.py FOLDER SEED`.

A picture at a time goes through PIL and ToTensor, in the order of the files; SGD, 5 epochs of batches of 64, each with
a test. It prints the accuracy.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import ToTensor

torch.manual_seed(int(sys.argv[2]))


class NeuralNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.linear_relu_stack = nn.Sequential(
            nn.Linear(28 * 28, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_relu_stack(self.flatten(x))


train_loader, test_loader = (
    DataLoader(datasets.FashionMNIST(sys.argv[1], train=train, transform=ToTensor()), batch_size=64)
    for train in (True, False)
)
model = NeuralNetwork()
loss_fn = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

for _ in range(5):
    model.train()
    for batch, (images, targets) in enumerate(train_loader):
        loss = loss_fn(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if batch % 100 == 0:
            print(f"loss {loss.item():.4f}")
    model.eval()
    with torch.no_grad():
        right = sum((model(images).argmax(1) == targets).sum().item() for images, targets in test_loader)
    print("accuracy", right / 10_000)
