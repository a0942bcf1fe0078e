"""One version of the model and how it answers: the same bytes whichever way a request came."""

import msgspec
from decode import Reader
from modelkit.artifact import Model


class Predictor:
    """A loaded model with the reader of its bodies. Thread-safe."""

    def __init__(self, model: Model, max_rows: int = 4096) -> None:
        self.manifest = model.manifest
        self.predict = model.predict
        self.reader = Reader(model.manifest.input, max_rows)

    def answer(self, body: bytes) -> tuple[bytes, int]:
        """JSON for the body of a /predict, and the number of rows in it. Raises Refusal."""
        rows, single = self.reader.rows(body)
        probabilities = self.predict(rows)
        manifest, source = self.manifest, {"model": self.manifest.model, "digest": self.manifest.digest}
        if single:
            values = probabilities[0].tolist()
            best = values.index(max(values))
            answer = {"prediction": best, "label": manifest.classes[best], "probabilities": values, **source}
        else:
            table, answers = probabilities.tolist(), probabilities.argmax(axis=1).tolist()
            labels = [manifest.classes[i] for i in answers]
            answer = {"predictions": answers, "labels": labels, "probabilities": table, **source}
        return msgspec.json.encode(answer), len(rows)
