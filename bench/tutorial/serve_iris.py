"""The plain tutorial server for Iris: FastAPI, a sync `def`, a pickled scikit-learn model. What many start with.

`Body()` is what it takes to work at all: without it, FastAPI 0.100 and newer answers 422 to every JSON body.
"""

import pickle
from pathlib import Path

import numpy as np
from fastapi import Body, FastAPI

app = FastAPI()
with Path("model.pkl").open("rb") as file:
    model = pickle.load(file)


@app.post("/predict/")
def predict(data: list = Body()):  # noqa: B008
    prediction = model.predict([np.array(data)])
    return {"prediction": prediction.tolist()}
