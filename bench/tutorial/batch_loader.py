"""Batch scoring with the tutorial's own DataLoader: torchvision's MNIST, its transforms, 1000 rows at a time."""

import tempfile
from pathlib import Path

import torch
from batch_network import arguments, load
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

args = arguments()
model = load(args.model)
to_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
number = 0
with tempfile.TemporaryDirectory() as root:
    raw = Path(root) / "MNIST/raw"  # where torchvision looks
    raw.mkdir(parents=True)
    for kind in ("train", "t10k"):  # it wants to find both
        for part in ("images-idx3", "labels-idx1"):
            shared = args.images.with_name(args.images.name.replace("images-idx3", part))
            (raw / f"{kind}-{part}-ubyte").symlink_to(shared.resolve())
    test_loader = DataLoader(datasets.MNIST(root, train=False, transform=to_tensor), batch_size=1000)
    with torch.no_grad(), args.output.open("w") as file:
        for images, _ in test_loader:
            for prediction in model(images.view(len(images), -1)).argmax(dim=1).tolist():
                file.write(f"{number},{prediction}\n")
                number += 1
