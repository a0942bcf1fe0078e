"""The plain tutorial server for MNIST: FastAPI, a sync `def`, a pickled torch network, images as JSON lists."""

import pickle
from pathlib import Path

import torch
from fastapi import Body, FastAPI

app = FastAPI()
with Path("mnist_model.pkl").open("rb") as file:
    model = pickle.load(file)
model.eval()


@app.post("/predict/")
def predict(data: list = Body()):  # noqa: B008
    with torch.no_grad():
        output = model(torch.tensor(data, dtype=torch.float32) / 255)
    return {"prediction": output.argmax(dim=1).tolist()}
