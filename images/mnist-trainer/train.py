"""Train a fully connected network on images, epoch by epoch, and keep its best epoch.

Linear, batch normalisation, an activation and dropout, `--layers` times; AdamW with a warm-up and a decay; images
distorted anew in each batch. What is validated and kept is a moving average of the weights: it improves steadily, so
that early stopping within and between trials judges the network and not the noise of its last steps.

Images are read once, from MNIST's four idx files or from others of the same names (`--data`, `--classes`), and stay in
memory as bytes, a quarter of what floats would take; all else is done to whole batches on the device. One in six
training images, chosen by its own content, is the hold-out. CUDA is used where it is there, with bfloat16 products.

Example: NAS_DATA=.nas/data python3 train.py --layers=2 --units=256 --lr=0.003 --epochs=20 --export-path=best
"""

import gzip
import math
import os
import sys
import zlib
from argparse import Namespace
from pathlib import Path

from modelkit import artifact, files, trial  # isort: skip - before numpy: it settles the number of threads
import numpy as np

HOLDOUT = 6  # one training image in so many is held out
AUGMENTATIONS = ("none", "shift", "affine", "elastic")


def read(folder: Path, part: str) -> tuple[artifact.Array, artifact.Array]:
    """Images uint8 [N, height, width] and labels int64 [N] of `part` (train or t10k), from idx files in `folder`."""
    arrays = []
    for name in ("images-idx3", "labels-idx1"):
        path = folder / f"{part}-{name}-ubyte.gz"
        try:
            with gzip.open(path) as file:
                shape = files.idx_shape(file.read)
                arrays.append(np.frombuffer(file.read(), np.uint8).reshape(shape))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            sys.exit(f"error: {path} can't be read ({error}): `nas data --help` tells how to get it")
    images, labels = arrays
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        sys.exit(
            f"error: {folder}: its {part} files hold {images.shape} and {labels.shape}, not images and their labels"
        )
    return images, labels.astype(np.int64)


def arguments(words: list[str] | None = None) -> Namespace:
    parser = trial.argument_parser(__doc__)
    add = parser.add_argument
    add("--layers", type=trial.at_least(1), required=True, help="hidden layers")
    add("--units", type=trial.at_least(1), required=True, help="units in each hidden layer")
    add("--lr", type=float, required=True, help="AdamW's highest learning rate")
    add("--activation", choices=list(artifact.ACTIVATIONS), default="relu", help="between layers")
    add("--batch-size", type=trial.at_least(2), default=128, help="images in a step")
    add("--dropout", type=float, default=0.1, help="share of units that are left out")
    add("--weight-decay", type=float, default=0.01, help="AdamW's")
    add("--label-smoothing", type=float, default=0.0, help="share of a label that all classes get")
    way = "shift: whole batches by a pixel; affine: each image; elastic: bent as well"
    add("--augmentation", choices=AUGMENTATIONS, default="shift", help=way)
    add("--strength", type=float, default=1.0, help="of affine and elastic")
    add("--data", default="mnist", help="folder of idx files, in $NAS_DATA")
    add("--classes", default="0,1,2,3,4,5,6,7,8,9", help="names by label")
    return parser.parse_args(words)


def main() -> None:
    args = arguments()
    folder, classes = Path(os.environ.get("NAS_DATA", "/data")) / args.data, args.classes.split(",")
    images, labels = read(folder, "train")
    test_images, test_labels = read(folder, "t10k")
    if max(labels.max(), test_labels.max()) >= len(classes):
        sys.exit(f"error: {folder} has label {max(labels.max(), test_labels.max())}: --classes names {len(classes)}")
    pixels = math.prod(images.shape[1:])
    contract = artifact.Input(dtype="uint8", shape=[pixels], image=list(images.shape[1:]))
    images, test = images.reshape(-1, pixels), (test_images.reshape(-1, pixels), test_labels)
    held = trial.held_out(images, labels, HOLDOUT)
    data = trial.Data(images, labels, [held], test)

    with trial.Trial(args, model=Path(args.data).name, input=contract, classes=classes, data=data) as run:
        from network import Training  # takes seconds to import: not for a digest of the data

        train = np.delete(np.arange(len(images)), held)
        training = Training(args, images[train].reshape(-1, *contract.image or []), labels[train], len(classes))
        if any(start := run.warm_start(training.network.shapes)):
            training.begin(start)
        if run.state:
            training.restore(run.state)
        for _ in run.epochs():
            loss = training.epoch()
            run.report(loss=loss, model=training.onnx(contract, classes), state=training.state())


if __name__ == "__main__":
    main()
