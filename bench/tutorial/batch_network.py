"""What both tutorial-style jobs share: their arguments, and the pickled torch network that they score with."""

import argparse
import pickle
from pathlib import Path

import torch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("images", type=Path, help="an idx3 file")
    parser.add_argument("model", type=Path, help="a pickled torch module")
    parser.add_argument("output", type=Path, help="a CSV file of predictions")
    torch.set_num_threads(1)
    return parser.parse_args()


def load(path: Path) -> torch.nn.Module:
    with path.open("rb") as file:
        model: torch.nn.Module = pickle.load(file)
    return model.eval()
