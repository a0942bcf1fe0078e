import sys
from pathlib import Path

# In the image the server's modules are at /app, beside modelkit.
sys.path.insert(0, str(Path(__file__).parents[3] / "images" / "server"))
