"""schemathesis over a server's own OpenAPI description: no request gets a 500, or an answer that isn't described.

Usage: openapi.py [EXAMPLES OF EACH OPERATION]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "images/server"), str(ROOT / "tests/images/server")]

import models  # noqa: E402
import process  # noqa: E402

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def main(examples: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        digest = models.promote(Path(folder), "iris", models.iris_rule())
        known = f'[parameters]\n"path.name" = "iris"\n"path.version" = "{digest}"\n'
        Path(folder, "schemathesis.toml").write_text(known)
        with process.server(Path(folder)) as (running, _, url):
            program = str(Path(sys.executable).with_name("schemathesis"))
            words = [program, "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", examples]
            words += ["--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all", "--no-color"]
            status = subprocess.run(words, check=False, cwd=folder, stdin=subprocess.DEVNULL).returncode
            assert running.poll() is None, "the server ended"
            return status


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:2] or ["50"])))
