"""Train a fully connected network on MNIST, epoch by epoch, and keep its best epoch.

Linear, batch normalisation, ReLU and dropout, `--layers` times; AdamW with a warm-up and a linear decay to zero; each
batch is shifted by up to `--shift` pixels. What is validated and kept is a moving average of the weights: it improves
steadily, so that early stopping within and between trials judges the network and not the noise of its last steps. All
images live in memory as one tensor; 10,000 of the 60,000 training images, the same for every trial, are the hold-out.
Runs on CUDA where there is some.

Example: NAS_DATA=.nas/data python3 train.py --layers=2 --units=256 --lr=0.003 --epochs=20 --export-path=best
"""

import gzip
import os
import sys
import zlib
from argparse import Namespace
from pathlib import Path

import modelkit  # isort: skip - before torch: it settles the number of threads
import numpy as np
import torch
from modelkit import artifact, trial
from torch import Tensor, nn
from torch.nn import functional

MEAN, DEVIATION = 0.1307 * 255, 0.3081 * 255  # of the training images' pixels
HOLDOUT = 6  # one training image in so many is held out
SPLIT_SEED = 0  # the split belongs to the data, not to the trial, so that trials and searches compare
AVERAGE = 0.998  # decay of the moving average, each step
WARM_UP = 0.1  # of all steps
CLASSES = [str(digit) for digit in range(10)]
INPUT = artifact.Input(dtype="uint8", shape=[784], image=[28, 28])


def read(folder: Path, part: str) -> tuple[artifact.Array, artifact.Array]:
    """Images uint8 [N, 784] and labels int64 [N] of `part` (train or t10k), as the idx files have them."""
    arrays = []
    for name, header, shape in (("images-idx3", 16, (-1, 784)), ("labels-idx1", 8, (-1,))):
        path = folder / f"{part}-{name}-ubyte.gz"
        try:
            arrays.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header).reshape(shape))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            sys.exit(f"error: {path} can't be read ({error}): fetch it with `nas data mnist`")
    images, labels = arrays
    return images, labels.astype(np.int64)


def split(count: int) -> tuple[artifact.Array, artifact.Array]:
    """Indices of the training and of the hold-out images."""
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    return np.sort(order[count // HOLDOUT :]), np.sort(order[: count // HOLDOUT])


class Network(nn.Sequential):
    """[N, 784] to logits [N, 10]."""

    def __init__(self, args: Namespace) -> None:
        layers: list[nn.Module] = []
        width = 784
        for _ in range(args.layers):
            # Batch normalisation has a bias of its own.
            layers += [nn.Linear(width, args.units, bias=False), nn.BatchNorm1d(args.units), nn.ReLU()]
            layers.append(nn.Dropout(args.dropout))
            width = args.units
        super().__init__(*layers, nn.Linear(width, 10))


def folded(network: Network, tensors: dict[str, Tensor]) -> list[tuple[artifact.Array, artifact.Array]]:
    """(weights [in, out], bias [out]) of each layer, with `tensors` for the network's own; normalisation folded in."""
    layers = []
    for index, module in enumerate(network):
        if isinstance(module, nn.Linear):
            weight = tensors[f"{index}.weight"].double()
            bias = tensors[f"{index}.bias"].double() if f"{index}.bias" in tensors else torch.zeros(len(weight))
            after = f"{index + 1}."
            if f"{after}running_var" in tensors:
                mean, variance = tensors[f"{after}running_mean"].double(), tensors[f"{after}running_var"].double()
                gain = tensors[f"{after}weight"].double() / (variance + nn.BatchNorm1d(1).eps).sqrt()
                weight, bias = weight * gain[:, None], tensors[f"{after}bias"].double() - mean * gain
            layers.append((weight.T.cpu().numpy(), bias.cpu().numpy()))
    return layers


class Training:
    """A network, its moving average and its optimiser on images uint8 [N, 784] and labels [N]; an epoch at a time."""

    def __init__(self, args: Namespace, images: artifact.Array, labels: artifact.Array) -> None:
        torch.manual_seed(args.seed)
        torch.set_num_threads(modelkit.cpus())
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pixels = torch.from_numpy(images).to(device).float().view(-1, 28, 28)
        self.shift = args.shift
        self.images = functional.pad(pixels, [self.shift] * 4).sub_(MEAN).div_(DEVIATION)
        self.labels = torch.from_numpy(labels).to(device)
        self.network = Network(args).to(device)
        self.average = {k: v.clone() for k, v in self._tensors().items()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=True
        )
        self.batch, self.step = args.batch_size, 0
        self.steps = args.epochs * (len(images) // self.batch)
        warm = max(1, int(WARM_UP * self.steps))
        self.rate = lambda step: args.lr * min((step + 1) / warm, (self.steps - step) / (self.steps - warm))

    def _tensors(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.network.state_dict().items() if v.is_floating_point()}

    def epoch(self) -> float:
        """Train one epoch; the mean cross-entropy of its steps."""
        self.network.train()
        order = torch.randperm(len(self.images))
        values, averages = list(self._tensors().values()), list(self.average.values())
        total = torch.zeros((), device=self.images.device)
        batches = order[: len(order) // self.batch * self.batch].view(-1, self.batch).to(self.images.device)
        for batch in batches:
            self.optimizer.param_groups[0]["lr"] = self.rate(self.step)  # type: ignore[no-untyped-call]
            top, left = torch.randint(2 * self.shift + 1, (2,)).tolist()
            shifted = self.images[batch, top : top + 28, left : left + 28].flatten(1)
            loss = functional.cross_entropy(self.network(shifted), self.labels[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            # The average starts short, so that it isn't held back by the random beginning.
            torch._foreach_lerp_(averages, values, 1 - min(AVERAGE, (1 + self.step) / (10 + self.step)))
            total += loss.detach()
        return total.item() / len(batches)

    def onnx(self) -> bytes:
        """The averaged network, with preprocessing inside."""
        layers = folded(self.network, self.average)
        return artifact.mlp(layers, "relu", INPUT, CLASSES, np.full(1, MEAN), np.full(1, 1 / DEVIATION))

    def state(self) -> dict[str, artifact.Array]:
        """All that the next epoch depends on."""
        state = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self.average.items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{k}": v for k, v in entry.items()}
        state |= {"random": torch.get_rng_state(), "step": torch.tensor(self.step)}
        return {k: v.cpu().numpy() for k, v in state.items()}

    def restore(self, state: dict[str, artifact.Array]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            names = [name for name in state if name.startswith(prefix)]
            return {name.removeprefix(prefix): torch.from_numpy(state[name]) for name in names}

        self.network.load_state_dict(part("network."))
        for name, tensor in part("average.").items():
            self.average[name].copy_(tensor)
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, key = name.split(".")
            entries.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        torch.set_rng_state(torch.from_numpy(state["random"]))
        self.step = int(state["step"])


def main() -> None:
    parser = trial.argument_parser(__doc__)
    parser.add_argument("--layers", type=int, required=True, help="hidden layers")
    parser.add_argument("--units", type=int, required=True, help="units in each hidden layer")
    parser.add_argument("--lr", type=float, required=True, help="AdamW's highest learning rate")
    parser.add_argument("--batch-size", type=int, default=128, help="images in a step (default: %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1, help="default: %(default)s")
    parser.add_argument("--shift", type=int, default=1, help="pixels, at most (default: %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="default: %(default)s")
    args = parser.parse_args()

    folder = Path(os.environ.get("NAS_DATA", "/data")) / "mnist"
    images, labels = read(folder, "train")
    train, holdout = split(len(images))
    training = Training(args, images[train], labels[train])

    with trial.Trial(
        args,
        model="mnist",
        input=INPUT,
        classes=CLASSES,
        validation=trial.Holdout(images[holdout], labels[holdout]),
        test=read(folder, "t10k"),
    ) as run:
        if run.state:
            training.restore(run.state)
        for _ in run.epochs():
            loss = training.epoch()
            run.report(loss=loss, model=training.onnx(), state=training.state())


if __name__ == "__main__":
    main()
