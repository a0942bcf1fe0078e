"""Batch scoring with a DataLoader over an array of images, 1000 rows at a time: leaner than the tutorial's own."""

import numpy as np
import torch
from batch_network import arguments, load
from torch.utils.data import DataLoader, Dataset

args = arguments()


class Images(Dataset[torch.Tensor]):
    def __init__(self) -> None:
        self.images = np.memmap(args.images, np.uint8, "r", offset=16).reshape(-1, 784)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(self.images[index]).float() / 255


model = load(args.model)
number = 0
with torch.no_grad(), args.output.open("w") as file:
    for batch in DataLoader(Images(), batch_size=1000):
        for prediction in model(batch).argmax(dim=1).tolist():
            file.write(f"{number},{prediction}\n")
            number += 1
