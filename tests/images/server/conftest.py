import sys
from pathlib import Path

SERVER = Path(__file__).parents[3] / "images" / "server"
sys.path.insert(0, str(SERVER))  # in the image its modules are at /app, beside modelkit
