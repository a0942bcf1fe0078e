"""atheris over the decoders of request bodies: whatever the bytes, rows come out or a Refusal of 400 to 499.

Usage: decoders.py [SECONDS] [CORPUS FOLDER]     a find is written to the folder and ends it with status 1
"""

import sys
from pathlib import Path

import atheris
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "images/server"), str(ROOT / "tests/images/server")]

with atheris.instrument_imports(include=["decode", "v2", "limits"]):
    import limits
    import models
    import v2
from live import Predictor  # noqa: E402
from modelkit import artifact  # noqa: E402

TAKES = {
    "iris": (models.IRIS, models.SPECIES, models.iris_rule()),
    "mnist": (models.MNIST, models.DIGITS, models.brightest_of_ten()),
}


def predictor(name: str) -> Predictor:
    """A predictor without a store: the manifest says only what the decoders ask."""
    takes, classes, data = TAKES[name]
    scores = artifact.Scores(accuracy=0, loss=0, rows=1, estimator="holdout")
    manifest = artifact.Manifest(
        model=name, digest=artifact.digest(data), size=len(data), input=takes, classes=classes,
        metrics=artifact.Metrics(scores), experiment="fuzz", trial="fuzz", parameters={}, seed=0, epoch=1,
        epochs_run=1, data_digest="0" * 64, outcomes=artifact.Outcomes.of(np.ones(1, bool)),
        versions={}, created="2026-01-01T00:00:00+00:00",
    )  # fmt: skip
    return Predictor(artifact.Model(manifest, data, threads=1), max_rows=16)


PREDICTORS = [predictor(name) for name in TAKES]


def one(data: bytes) -> None:
    """The first byte picks the model and the decoder, the rest is the body."""
    if not data:
        return
    chosen, body = PREDICTORS[data[0] & 1], data[1:]
    try:
        if data[0] & 2:
            length = str(data[0] >> 2) if data[0] & 128 else None
            v2.infer_body(chosen, body, length)
        else:
            rows, single = chosen.reader.rows(body)
            takes = chosen.manifest.input
            assert rows.dtype == takes.dtype
            assert rows.shape[1:] == tuple(takes.shape)
            assert 1 <= len(rows) <= 16
            assert np.isfinite(rows).all()
            assert not single or len(rows) == 1
            chosen.answer(body)
    except limits.Refusal as refusal:
        if not 400 <= refusal.status < 500:
            raise


def seeds() -> list[bytes]:
    """Good bodies of every form, for the fuzzer to start from."""
    import io
    import json

    import msgspec

    found = [b"\x00[5.1,3.5,1.4,0.2]", b"\x00[[5.1,3.5,1.4,0.2],[1,2,3,4]]", b'\x01{"b64":"' + b"A" * 1048 + b'"}']
    found.append(b'\x00{"sepal_length":5,"sepal_width":3,"petal_length":1,"petal_width":0}')
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [5.1, 3.5, 1.4, 0.2]}
    found.append(b"\x02" + msgspec.json.encode({"id": "1", "inputs": [tensor], "outputs": [{"name": "label"}]}))
    for model, array in ((0, np.ones((2, 4), np.float32)), (0, np.ones(4, ">f8")), (1, np.ones((1, 28, 28), np.uint8))):
        file = io.BytesIO()
        np.save(file, array)
        found.append(bytes([model]) + file.getvalue())
    for shape in ([1] * 66 + [4], [0, 10**30], [0, 2**62], [0, 2**62, 8]):  # what numpy's reshape doesn't take
        for more in ({"data": []}, {"data": None, "parameters": {"binary_data_size": 0}}):
            text = json.dumps({"inputs": [tensor | {"shape": shape} | more]}).encode()
            found.append(b"\x02" + text)
    for shape in ("1," * 66 + "4", f"0,{10**30}", f"0,{2**62},8", "True,4"):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}\n".encode()
        found.append(
            b"\x00\x93NUMPY\1\0" + len(head).to_bytes(2, "little") + head + bytes(0 if shape[0] == "0" else 16)
        )
    return found


if __name__ == "__main__":
    seconds, corpus = [*sys.argv[1:], *("30", ".nas/fuzz")[len(sys.argv) - 1 :]]
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (folder / f"seed-{number}").write_bytes(seed)
    words = [f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={folder}/find-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *words, str(folder)], one)
    atheris.Fuzz()
