"""MNIST as a plain tutorial trains it: a DataLoader, a stack of Linear layers, Adam. What ours is measured against."""

import argparse
import os
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--units", type=int, default=128)
parser.add_argument("--lr", type=float, default=0.001)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
torch.set_num_threads(int(os.environ.get("NAS_CPUS", "1")))
root = Path(os.environ["NAS_DATA"]) / "torchvision"
to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
train = DataLoader(datasets.MNIST(root, train=True, transform=to_tensor), batch_size=64, shuffle=True)
test = DataLoader(datasets.MNIST(root, train=False, transform=to_tensor), batch_size=1000)

sizes = [784] + [args.units] * args.layers + [10]
network = nn.Sequential(*[nn.Linear(a, b) for a, b in pairwise(sizes)])
loss_function = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(network.parameters(), lr=args.lr)

for epoch in range(1, args.epochs + 1):
    start = time.process_time()
    network.train()
    for images, labels in train:
        optimizer.zero_grad()
        loss = loss_function(network(images.view(len(images), -1)), labels)
        loss.backward()
        optimizer.step()
    seconds = time.process_time() - start
    network.eval()
    with torch.no_grad():
        right = sum((network(x.view(len(x), -1)).argmax(1) == y).sum().item() for x, y in test)
    print(f"epoch={epoch} seconds={seconds:.3f} accuracy={right / 10000}", flush=True)
