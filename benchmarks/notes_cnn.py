"""The loop without Lightning of the notes, with its network and recipe, on Fashion-MNIST: `notes_cnn.py FOLDER SEED`.

A picture at a time goes through PIL and ToTensor; Adam, 10 epochs of batches of 32. The test that the notes leave to
their reader is added. It prints the accuracy.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

torch.manual_seed(int(sys.argv[2]))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, kernel_size=3), nn.ReLU(), nn.MaxPool2d(kernel_size=2), nn.Flatten(), nn.Linear(5408, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


train_set, test_set = (
    datasets.FashionMNIST(sys.argv[1], train=train, transform=transforms.ToTensor()) for train in (True, False)
)
loader = DataLoader(train_set, batch_size=32, shuffle=True)
model = Network()
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

for epoch in range(10):
    model.train()
    for images, targets in loader:
        optimizer.zero_grad()
        loss = criterion(model(images), targets)
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}, loss {loss.item():.4f}")

model.eval()
with torch.no_grad():
    right = sum((model(images).argmax(1) == targets).sum().item() for images, targets in DataLoader(test_set, 32))
print("accuracy", right / len(test_set))
