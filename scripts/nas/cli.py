"""The command line `nas`."""

import hashlib
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nas.errors import NasError

ROOT = Path(__file__).parents[2]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # to a program with options of its own

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Search, serve and score models: on this machine, from the values files of the Helm chart.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Fetch what trainers learn from, once.")
app.add_typer(data_app, name="data")


class Target(StrEnum):
    """Where a search runs."""

    AUTO = "auto"
    LOCAL = "local"


Model = Annotated[str, typer.Option("--model", "-m", help="The model's name.")]


def _home() -> Path:
    return Path(os.environ.get("NAS_HOME", ROOT / ".nas")).absolute()


@app.command()
def run(
    values: Annotated[str, typer.Argument(help="A values file, or the name of one in values/.")],
    target: Annotated[Target, typer.Option(help="Where the trials run.")] = Target.AUTO,
    number: Annotated[int | None, typer.Option("--run", min=1, help="experiment.run; default: the next one.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the latest interrupted run.")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As helm's --set.")] = None,
) -> None:
    """Run a search and promote its best model.

    Each call is a search of its own, with new random draws. Ctrl-C stops it; --resume goes on.

    Example: nas run iris --set experiment.maxTrials=6
    """
    from nas import local

    why = "no cluster is asked for" if target is Target.LOCAL else "the embedded default, no cluster needed"
    print(f"target: local ({why})", flush=True)
    raise typer.Exit(local.run(ROOT, _home(), values, number, resume, settings or []))


@app.command()
def serve(
    model: Model = "iris",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve the promoted model over HTTP until Ctrl-C.

    Example: nas serve --model iris --port 8000
    """
    _become("server/serve.py", "--model", model, "--host", host, "--port", str(port))


@app.command()
def batch(
    inputs: Annotated[list[Path] | None, typer.Argument(help="Files to score; default: the MNIST test set.")] = None,
    model: Model = "mnist",
    digest: Annotated[str | None, typer.Option(help="A version; default: the current one.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for it; default: one in .nas/output/MODEL.")] = None,
    form: Annotated[str, typer.Option("--format", help="Of the predictions: parquet, csv or jsonl.")] = "parquet",
    keep: Annotated[list[str] | None, typer.Option(help="A column of the inputs to carry through; repeatable.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write each class's probability too.")] = False,
    on_error: Annotated[str, typer.Option(help="On a bad row: fail, or skip, which leaves it out and tells.")] = "fail",
) -> None:
    """Score files with the promoted model, on all cores; after a kill, the same command goes on where it was.

    Example: nas batch --model iris flowers.csv
    """
    from modelkit.store import Store

    from nas import data

    if not inputs:
        data.ensure("mnist", _home() / "data")
    words = ["--format", form, "--on-error", on_error]
    words += ["--input", *map(str, inputs)] if inputs else []
    words += ["--keep", *keep] if keep else []
    words += ["--probabilities"] if probabilities else []
    digest = digest or Store(_home() / "model", model).current()
    words += ["--digest", digest] if digest else []
    if output is None:  # the same command finds its unfinished job again; another model or a changed file is a new one
        states = [(str(path), path.stat().st_mtime_ns if path.exists() else 0) for path in inputs or []]
        key = hashlib.sha256(repr([words, states]).encode()).hexdigest()[:8]
        output = _home() / "output" / model / f"{inputs[0].name.split('.')[0] if inputs else 'mnist-test'}-{key}"
    _become("batch/score.py", "--model", model, "--output", str(output), *words)


@data_app.command()
def mnist(
    folder: Annotated[Path | None, typer.Option("--from", help="A folder that has the four idx.gz files.")] = None,
) -> None:
    """Fetch MNIST and check it; what is there already stays.

    Example: nas data mnist --from /media/usb/mnist
    """
    from nas import data

    print(f"mnist is in {data.ensure('mnist', _home() / 'data', folder)}")


@app.command(context_settings=PASS_ON, add_help_option=False)
def models(context: typer.Context) -> None:
    """List, show, promote, rollback, unpin, verify or gc the models in the store.

    Example: nas models list --model iris
    """
    from modelkit import store

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    raise typer.Exit(store.main(context.args or ["--help"], prog="nas models", root=_home() / "model"))


@app.command(context_settings=PASS_ON, add_help_option=False)
def helm(context: typer.Context) -> None:
    """Call the helm that `nas run` uses.

    Example: nas helm template x charts/nas --values values/iris.yaml
    """
    from nas import chart

    path = chart.helm(_home())
    os.execv(path, [str(path), *context.args])


def _become(script: str, *words: str) -> None:
    """Turn this process into one of the images' programs."""
    path = str(ROOT / "images" / script)
    os.environ.setdefault("NAS_DATA", str(_home() / "data"))
    os.execv(sys.executable, [sys.executable, path, "--store", str(_home() / "model"), *words])


def main() -> None:
    """Entry point: errors are one line on stderr and exit status 1."""
    message = ""
    try:
        app()
    except NasError as error:
        message = str(error)
    except OSError as error:
        from modelkit.store import explain

        message = explain(error, Path(error.filename or _home()))
    except KeyboardInterrupt:
        sys.exit(130)
    if message:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
