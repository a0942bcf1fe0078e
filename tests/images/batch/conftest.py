import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "server"))  # models: small ones whose answers are known
sys.path.insert(0, str(TESTS.parents[1] / "images" / "batch"))  # in the image it is at /app, beside modelkit
