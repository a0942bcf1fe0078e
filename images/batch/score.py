"""Score files with a store's current model, or with the one a digest names.

Inputs are idx files of images and .npy arrays (their labels beside them, if there), CSV files whose header names the
model's features (and `label`, if known), each also as .gz, Parquet files with such columns, or mnist-test. The folder
OUTPUT gets part files, and _SUCCESS when all are there. Run again after a kill, it goes on where it was; run by
several processes or pods at once, each scores other shards.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from modelkit import artifact, cpus, files, store  # isort: skip - before numpy: it settles the number of threads

import job
from inputs import InputError
from outputs import FORMATS

EXAMPLE = """example:
  python3 score.py --store .nas/model --model mnist --input mnist-test --output .nas/output/mnist
"""
HELPER = "NAS_BATCH_HELPER"  # set in a process that another one started to share its work
REFUSED = 3  # exit status when trying again can't help


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 scored, 1 failed and may be tried again, 2 wrong options, 3 refused for good."""
    words = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args = parser.parse_args(words)
    if args.shard_index is not None and not 0 <= args.shard_index < args.shards:
        parser.error(f"--shard-index is 0 to {args.shards - 1} with --shards {args.shards}, not {args.shard_index}")
    mnist = Path(os.environ.get("NAS_DATA", "/data")).absolute() / "mnist" / "t10k-images-idx3-ubyte.gz"
    inputs = [str((mnist if name == "mnist-test" else Path(name)).absolute()) for name in args.input or ["mnist-test"]]
    try:
        if str(mnist) in inputs and not mnist.exists():
            raise InputError(f"the MNIST test set is not at {mnist}; get it with: nas data mnist")
        kept = store.Store(args.store, args.model)
        asked = vars(args) | {"inputs": inputs}
        request = job.Request(**{name: asked[name] for name in job.Request.__struct_fields__})
        found = job.begin(args.output, request, args.digest, lambda digest: _load(kept, digest, args.wait))
        done = not found or _share(found, args, words)
        if HELPER not in os.environ:
            told = job.summary(args.output) if done else "the other shards are not done yet: the last one ends the job"
            print("" if found else "complete already\n", end="")
            print(told, flush=True)
        return 0
    except (InputError, job.JobError) as error:
        message, status = str(error), REFUSED
    except (store.StoreError, artifact.ArtifactError, files.LockError, OSError) as error:
        message, status = store.explain(error, args.output), 1
    print(f"error: {message}", file=sys.stderr)
    return status


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    shape = argparse.RawDescriptionHelpFormatter
    parser = _Parser(description=__doc__, epilog=EXAMPLE, formatter_class=shape, allow_abbrev=False)
    add = parser.add_argument
    add("--store", type=Path, default=Path("/model"), help="the store's folder (default: %(default)s)")
    add("--model", required=True, help="the model's name in the store, for example mnist")
    add("--digest", help="score with this version, or enough of its start (default: the current one)")
    add("--wait", type=float, default=0, metavar="SECONDS", help="how long to wait for a first model (default: 0)")
    add("--input", nargs="+", action="extend", help="files, globs, or mnist-test (default)")
    add("--output", type=Path, required=True, help="folder for the predictions, of this job alone")
    add("--format", choices=FORMATS, default="parquet", help="of the predictions (default: %(default)s)")
    add("--probabilities", action="store_true", help="write each class's probability too")
    add("--keep", nargs="+", action="extend", default=[], metavar="COLUMN", help="columns of tables to carry through")
    add("--on-error", choices=["fail", "skip"], default="fail", help="on a bad row: end, or leave it out and tell")
    add("--print", type=int, default=100, help="predictions to print (default: %(default)s)")
    add("--shards", type=int, default=0, help=f"parts of the rows (default: one for each {job.SHARD_ROWS})")
    add("--shard-index", type=int, help="score this part alone, from 0 (default: all)")
    add("--workers", type=int, default=cpus(), help="processes to share the shards (default: the CPUs, %(default)s)")
    return parser


def _load(kept: store.Store, digest: str | None, wait: float) -> artifact.Model:
    """The version `digest`, or the current one, waited for so many seconds if nothing is promoted yet."""
    if digest and not kept.version(digest).is_dir():  # its start alone is looked for in all models
        entry = kept.find(digest)
        return artifact.load(entry.folder, entry.manifest.digest)
    end = time.monotonic() + wait
    if wait and not (digest or kept.current()):
        print(f"waiting   for a model of {kept.model!r} in {kept.root}, at most {wait:.0f} s", flush=True)
    while not (digest or kept.current()) and time.monotonic() < end:
        time.sleep(0.5)
    return kept.load(digest)


def _share(found: job.Job, args: argparse.Namespace, words: list[str]) -> bool:
    """Work on the job, with helpers where there is enough to do. Whether all of it is done."""
    every = range(found.plan.shards)
    if (done := sum(map(found.over, every))) and HELPER not in os.environ:
        print(f"goes on   {done} of {len(every)} shards are done", flush=True)
    mine = every if args.shard_index is None else every[args.shard_index : args.shard_index + 1]
    count = min(args.workers, sum(not found.over(shard) for shard in mine)) - 1
    command = [sys.executable, str(Path(__file__).absolute()), *words, "--workers=1"]
    # What a helper fails at, this process tries again and tells of. Their stdin ends when this process does.
    pipe, quiet, environment = subprocess.PIPE, subprocess.DEVNULL, os.environ | {HELPER: "1", "NAS_CPUS": "1"}
    helpers = [subprocess.Popen(command, stdin=pipe, stderr=quiet, env=environment) for _ in range(count)]
    try:
        found.work(mine, args.print)
    finally:
        for helper in helpers:
            helper.communicate()
    return found.finish()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(143)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    if HELPER in os.environ:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    os._exit(main())  # to take down the interpreter first is 2 % of half a million rows; what is printed is flushed
