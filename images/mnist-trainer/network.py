"""The network, its distortions of images and its training. Apart from train.py, since torch takes seconds to import."""

import copy
import itertools
import math
from argparse import Namespace

import modelkit  # isort: skip - before torch: it settles the number of threads
import numpy as np
import torch
from modelkit import artifact
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_linear_bn_eval

AVERAGE = 0.998  # decay of the moving average, each step
WARM_UP = 0.1  # of all steps
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid, "identity": nn.Identity}
PIXELS, DEGREES, STRETCH, SHEAR = 2.0, 11.0, 0.12, 0.15  # affine: each drawn evenly up to so much, at --strength 1
BEND, COARSE = 0.8, 6  # elastic: standard deviation in pixels of a displacement, on a grid of COARSE x COARSE points


class Network(nn.Sequential):
    """[N, pixels] to logits [N, classes]."""

    def __init__(self, args: Namespace, pixels: int, classes: int) -> None:
        layers: list[nn.Module] = []
        width = pixels
        for _ in range(args.layers):
            # Batch normalisation has a bias of its own.
            layers += [nn.Linear(width, args.units, bias=False), nn.BatchNorm1d(args.units)]
            layers.append(ACTIVATIONS[args.activation]())
            if args.dropout:
                layers.append(nn.Dropout(args.dropout))
            width = args.units
        super().__init__(*layers, nn.Linear(width, classes))
        self.shapes = [(m.in_features, m.out_features) for m in self if isinstance(m, nn.Linear)]


def basis(height: int, width: int) -> Tensor:
    """What maps of an image are sums of, [3 + COARSE², pixels]: x, y and 1, then a bump for each coarse point."""
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * 2 / n - 1 for n in (height, width)), indexing="ij")
    bumps = functional.interpolate(torch.eye(COARSE**2).view(-1, 1, COARSE, COARSE), (height, width), mode="bicubic")
    return torch.cat([torch.stack([x, y, torch.ones_like(x)]), bumps[:, 0]]).flatten(1)


def distorted(images: Tensor, strength: float, maps: Tensor) -> Tensor:
    """Images [N, height, width], each turned, stretched, sheared and moved by its own draw.

    With all of `basis` as `maps` they are bent as well, as in Simard et al., "Best Practices for Convolutional Neural
    Networks" (2003): smoothed noise there is noise on a coarse grid here, smooth by its interpolation.
    """
    count, height, width = images.shape
    draw = (torch.rand(6, count, device=images.device) * 2 - 1) * strength
    angle, shear, move = draw[0] * math.radians(DEGREES), draw[1] * SHEAR, draw[4:] * 2 * PIXELS
    sine, cosine, x, y = angle.sin(), angle.cos(), 1 + draw[2] * STRETCH, 1 + draw[3] * STRETCH
    to_x = [x * cosine, x * (shear * cosine - sine), move[0] / width]
    to_y = [y * sine, y * (shear * sine + cosine), move[1] / height]
    parts = torch.stack([torch.stack(to_x), torch.stack(to_y)]).transpose(1, 2)
    bends = torch.randn(2, count, len(maps) - 3, device=images.device) * (strength * BEND * 2 / width)
    where = (torch.cat([parts, bends], dim=2) @ maps).view(2, count, height, width)
    return functional.grid_sample(images[:, None], torch.stack([*where], dim=3), align_corners=False)[:, 0]


class Training:
    """A network, its moving average and AdamW's moments on images uint8 [N, height, width] and labels [N]."""

    def __init__(self, args: Namespace, images: artifact.Array, labels: artifact.Array, classes: int) -> None:
        torch.manual_seed(args.seed)
        torch.set_num_threads(modelkit.cpus())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.args, self.size, self.pad = args, images.shape[1:], int(args.augmentation == "shift")
        sample = images[::16]
        self.mean, self.deviation = float(sample.mean()), float(sample.std()) or 1.0
        padding = [(0, 0), (self.pad, self.pad), (self.pad, self.pad)]
        self.images = torch.from_numpy(np.pad(images, padding)).to(device)
        self.labels = torch.from_numpy(labels).to(device)
        self.maps = basis(*self.size).to(device)[: None if args.augmentation == "elastic" else 3]
        self.network = Network(args, math.prod(self.size), classes).to(device)
        self.averaged = copy.deepcopy(self.network)
        # AdamW by torch's own kernel: torch.optim.AdamW imports the whole compiler before, a second of each trial.
        self.weights: list[Tensor] = [*self.network.parameters()]
        self.moments = [[torch.zeros_like(tensor) for tensor in self.weights] for _ in range(2)]
        self.step, self.steps = 0, args.epochs * (len(images) // args.batch_size)
        # bfloat16 has float32's range, so that no loss needs scaling; on CPUs it gains nothing for such networks.
        self.precision = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def _rate(self) -> float:
        """The learning rate of this step: up in a line, then down in another."""
        warm = max(1, int(WARM_UP * self.steps))
        return float(self.args.lr * min((self.step + 1) / warm, (self.steps - self.step) / max(1, self.steps - warm)))

    def _batch(self, rows: Tensor) -> Tensor:
        """Augmented, standardised images [batch, pixels]."""
        images = self.images.index_select(0, rows)
        if self.pad:
            top, left = torch.randint(2 * self.pad + 1, (2,)).tolist()
            images = images[:, top : top + self.size[0], left : left + self.size[1]]
        images = images.float()
        if self.args.augmentation in ("affine", "elastic"):
            images = distorted(images, self.args.strength, self.maps)
        return images.sub_(self.mean).mul_(1 / self.deviation).flatten(1)

    def epoch(self) -> float:
        """Train one epoch; the mean cross-entropy of its steps."""
        self.network.train()
        states = [network.state_dict().values() for network in (self.network, self.averaged)]
        values, averages = ([tensor for tensor in state if tensor.is_floating_point()] for state in states)
        total = torch.zeros((), device=self.images.device)
        count = len(self.images) // self.args.batch_size
        order = torch.randperm(len(self.images))[: count * self.args.batch_size].to(self.images.device)
        for rows in order.view(count, -1):
            total += self._learn(rows)
            # The average starts short, so that it isn't held back by the random beginning.
            torch._foreach_lerp_(averages, values, 1 - min(AVERAGE, (1 + self.step) / (10 + self.step)))
        return float(total.item() / count)

    def _learn(self, rows: Tensor) -> Tensor:
        """One step on these images; its mean cross-entropy."""
        with self.precision:
            logits = self.network(self._batch(rows))
            loss = functional.cross_entropy(logits, self.labels[rows], label_smoothing=self.args.label_smoothing)
        gradients, rate = torch.autograd.grad(loss, self.weights), self._rate()
        self.step += 1
        counts = [torch.tensor(float(self.step), device=loss.device)] * len(gradients)
        means, squares = self.moments
        with torch.no_grad():
            torch._fused_adamw_(
                self.weights, gradients, means, squares, [], counts, lr=rate, beta1=0.9, beta2=0.999, eps=1e-8,
                weight_decay=self.args.weight_decay, amsgrad=False, maximize=False,
            )  # fmt: skip
        return loss.detach()

    @torch.no_grad()
    def begin(self, layers: list[artifact.Layer | None]) -> None:
        """Start from these layers, as a model file has them, where they aren't None; the others are as they were drawn.

        There is no normalisation in a file: it gets the spread and the mean that let it change nothing.
        """
        left, values = iter(layers), self._batch(torch.arange(min(4096, len(self.images)), device=self.images.device))
        for module in self.network.eval():
            if isinstance(module, nn.Linear):
                layer = next(left)
                if layer:
                    module.weight.copy_(torch.from_numpy(layer[0].T.copy()))
                    if module.bias is not None:
                        module.bias.copy_(torch.from_numpy(layer[1].copy()))
            elif isinstance(module, nn.BatchNorm1d):
                variance, mean = torch.var_mean(values, dim=0)
                module.running_mean, module.running_var = mean, variance
                if layer:
                    module.weight.copy_((variance + module.eps).sqrt())
                    module.bias.copy_(mean + torch.from_numpy(layer[1].copy()).to(mean.device))
            values = module(values)
        self.averaged.load_state_dict(self.network.state_dict())

    def onnx(self, contract: artifact.Input, classes: list[str]) -> bytes:
        """The averaged network, with preprocessing inside and normalisation folded into its layers."""
        layers = []
        for module, after in itertools.pairwise([*copy.deepcopy(self.averaged).cpu().double().eval(), None]):
            if isinstance(module, nn.Linear):
                linear = fuse_linear_bn_eval(module, after) if isinstance(after, nn.BatchNorm1d) else module
                layers.append((linear.weight.detach().T.numpy(), linear.bias.detach().numpy()))
        mean, scale = np.full(1, self.mean), np.full(1, 1 / self.deviation)
        return artifact.mlp(layers, self.args.activation, contract, classes, mean, scale)

    def _all(self) -> list[Tensor]:
        states = (network.state_dict().values() for network in (self.network, self.averaged))
        return list(itertools.chain(*states, *self.moments))

    def state(self) -> dict[str, artifact.Array]:
        """All that the next epoch depends on; on CUDA but for the device's own random numbers."""
        state = {str(number): tensor for number, tensor in enumerate(self._all())}
        state |= {"random": torch.get_rng_state(), "step": torch.tensor(self.step)}
        return {name: tensor.cpu().numpy() for name, tensor in state.items()}

    def restore(self, state: dict[str, artifact.Array]) -> None:
        saved = {name: torch.from_numpy(array) for name, array in state.items()}
        for number, tensor in enumerate(self._all()):
            tensor.copy_(saved[str(number)])
        torch.set_rng_state(saved["random"])
        self.step = int(saved["step"])
