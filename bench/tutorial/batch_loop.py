"""Batch scoring by the tutorial's way of reading images (`/ 255.0`, all at once), then one prediction after another."""

import numpy as np
import torch
from batch_network import arguments, load

args = arguments()
images = np.fromfile(args.images, np.uint8, offset=16)
images = images.reshape(len(images) // 784, -1) / 255.0
model = load(args.model)
with torch.no_grad(), args.output.open("w") as file:
    for number, image in enumerate(images):
        output = model(torch.tensor(image, dtype=torch.float32).unsqueeze(0))
        file.write(f"{number},{output.argmax(dim=1).item()}\n")
