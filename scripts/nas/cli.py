"""The command line `nas`."""

import hashlib
import importlib.metadata
import os
import re
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from modelkit import files, store

from nas import artifacts, chart, data, fetch, images
from nas import doctor as doctor_
from nas import release as release_
from nas.cluster import NAMESPACE, Cluster, ClusterError, Target, choose
from nas.errors import TOLD, NasError
from nas.view import meter

ROOT = Path(__file__).parents[2]
HOME = Path(os.environ.get("NAS_HOME", ROOT / ".nas")).absolute()

AUTO = Target.AUTO
PLAIN: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
app = typer.Typer(
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Search, serve and score models: on this machine or a cluster, from the values files of the Helm chart.",
    epilog="`nas` is .venv/bin/nas in the project's folder. `make help` lists short forms of the everyday commands.",
    **PLAIN,
)


cluster_app = typer.Typer(help="Prepare a cluster for searches.", **PLAIN)
app.add_typer(cluster_app, name="cluster")

On = Annotated[Target, typer.Option("--target", envvar="NAS_TARGET", help="auto: MicroK8s with Katib, else here.")]
Namespace = Annotated[str, typer.Option(envvar="NAS_NAMESPACE", help="The cluster's namespace.")]
Release = Annotated[str | None, typer.Option(help="A release on a cluster; default: MODEL-nas.")]
Build = Annotated[bool, typer.Option(help="On a cluster: build the images and bring them there.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The model's name.")]
Values = Annotated[str, typer.Argument(help="A values file, or the name of one in values/.")]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        print(f"nas {importlib.metadata.version('nas')}")
        raise typer.Exit


def _cluster(target: Target, namespace: str) -> Cluster:
    """The cluster a command is about. Raises ClusterError when `auto` finds none."""
    chosen, why = choose(target)
    if chosen is Target.LOCAL:
        raise ClusterError(f"no cluster to look at ({why}): --target cluster is the current kubeconfig context")
    return Cluster(chosen, namespace, HOME)


def _place(target: Target, namespace: str, release: str | None, model: str) -> tuple[Cluster | None, str]:
    """The cluster and release that hold a model; no cluster: this machine does."""
    if release:
        return _cluster(target, namespace), release
    chosen, why = choose(target)
    if chosen is Target.LOCAL:
        return None, ""
    cluster, release = Cluster(chosen, namespace, HOME), f"{model}-nas"
    if target is Target.AUTO:
        try:
            cluster.values(release)
        except ClusterError as error:
            print(f"target: local ({error})", file=sys.stderr)
            return None, ""
    print(f"target: {chosen} ({why}), release {release}", file=sys.stderr)
    return cluster, release


@app.command()
def run(
    values: Values,
    target: On = AUTO,
    number: Annotated[int | None, typer.Option("--run", min=1, help="experiment.run; default: the next.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the latest interrupted run here.")] = False,
    every: Annotated[str, typer.Option(metavar="TIME", help="Here: search again so often: 30m, 6h, 1d.")] = "",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As helm's --set.")] = None,
    release: Annotated[str | None, typer.Option(help="On a cluster; default: the file's name-nas.")] = None,
    namespace: Namespace = NAMESPACE,
    build: Build = True,
) -> None:
    """Run a search and promote its best model.

    Here, each call is a search of its own, with new random draws; Ctrl-C stops it, --resume goes on. On a cluster, the
    release is installed or upgraded and its search followed; Ctrl-C leaves it running, and --run 2 asks for another.

    Example: nas run iris --set experiment.maxTrials=6
    """
    interval = _seconds(every) if every else 0
    if every and (resume or number):
        raise NasError("--every starts new searches, each with a number of its own: leave --resume and --run out")
    chosen, why = choose(target)
    print(f"target: {chosen} ({why})", flush=True)
    if chosen is Target.LOCAL:
        from nas import local

        if every:
            raise typer.Exit(local.repeat(ROOT, HOME, values, interval, settings or []))
        raise typer.Exit(local.run(ROOT, HOME, values, number, resume, settings or []))
    if resume or every:
        raise NasError("a cluster resumes by itself, and repeats by experiment.schedule: leave the option out")

    path = chart.values_file(ROOT, values)
    given = [ROOT / "values" / "microk8s.yaml", path] if chosen is Target.MICROK8S else [path]
    cluster, asked = Cluster(chosen, namespace, HOME), [f"experiment.run={number}"] if number else []
    name = release or chart.release_name(path)
    raise typer.Exit(release_.run(cluster, ROOT, name, given, [*(settings or []), *asked], build))


def _seconds(text: str) -> int:
    if not (found := re.fullmatch(r"([1-9]\d*)([mhd])", text)):
        raise NasError(f"--every {text}: a whole number of minutes, hours or days, such as 30m, 6h or 1d")
    return int(found[1]) * {"m": 60, "h": 3600, "d": 86400}[found[2]]


@app.command()
def watch(
    release: Annotated[str, typer.Argument(help="A release on a cluster.")],
    target: On = AUTO,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Follow a search on a cluster, or show one that is over.

    Example: nas watch iris-nas --target microk8s
    """
    raise typer.Exit(release_.watch(_cluster(target, namespace), ROOT, release))


@app.command()
def serve(
    model: Model = "iris",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    target: On = AUTO,
    release: Release = None,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Serve the promoted model over HTTP until Ctrl-C.

    Of a release on a cluster, its server is forwarded to this machine.

    Example: nas serve --model iris --port 8000
    """
    cluster, name = _place(target, namespace, release, model)
    if cluster is None:
        models = store.Store(HOME / "model", model)
        if not models.folder.exists():  # one without a promoted model is waited for
            raise NasError(models.nothing())
        _become("server/serve.py", "--model", model, "--host", host, "--port", str(port))
    else:
        release_.serve(cluster, name, host, port)


@app.command()
def batch(
    inputs: Annotated[list[Path] | None, typer.Argument(help="Files; default for images: the MNIST test set.")] = None,
    model: Model = "iris",
    digest: Annotated[str | None, typer.Option(help="A version; default: the current one.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for it; default: one in .nas/output/MODEL.")] = None,
    form: Annotated[str, typer.Option("--format", help="Of the predictions: parquet, csv or jsonl.")] = "parquet",
    keep: Annotated[list[str] | None, typer.Option(help="A column of the inputs to carry through; repeatable.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write each class's probability too.")] = False,
    on_error: Annotated[str, typer.Option(help="On a bad row: fail, or skip, which leaves it out and tells.")] = "fail",
    target: On = AUTO,
    release: Release = None,
    namespace: Namespace = NAMESPACE,
    build: Build = True,
    follow: Annotated[bool, typer.Option(help="On a cluster: wait for the Job and bring its result here.")] = True,
) -> None:
    """Score files with the promoted model, on all cores.

    Of a release on a cluster, its batch Job does it. After a kill, the same command goes on where it was.

    Example: nas batch --model iris flowers.csv

    Example: nas batch --model iris flowers.csv --release iris-nas --no-follow
    """
    inputs = inputs or []
    cluster, name = _place(target, namespace, release, model)
    if cluster is not None:
        settings = {"format": form, "onError": on_error, "probabilities": probabilities, "digest": digest, "keep": keep}
        release_.batch(cluster, ROOT, name, settings | {"inputs": inputs}, output, build, follow)
        return
    models = store.Store(HOME / "model", model)
    if not inputs:
        if models.find(digest or None).manifest.input.image is None:
            raise NasError(f"{model} takes rows of a table, so name the files: .venv/bin/nas batch -m {model} FILE.csv")
        data.ensure("mnist", HOME / "data")
    digest = digest or (None if output else models.current())  # a job that is there goes on with its own
    words = ["--format", form, "--on-error", on_error, *(["--probabilities"] if probabilities else [])]
    words += ["--input", *map(str, inputs)] if inputs else []
    words += ["--keep", *keep] if keep else []
    words += ["--digest", digest] if digest else []
    if output is None:  # the same command finds its unfinished job again; another model or a changed file is a new one
        # "." and "/" have no name, and no pattern may be empty.
        found = [path for given in inputs for path in sorted(given.parent.glob(given.name or "*.")) or [given]]
        states = [(str(path), path.stat().st_mtime_ns if path.exists() else 0) for path in found]
        key = hashlib.sha256(repr([words, states]).encode()).hexdigest()[:8]
        output = HOME / "output" / model / f"{inputs[0].name.split('.')[0] if inputs else 'mnist-test'}-{key}"
    _become("batch/score.py", "--model", model, "--output", str(output), *words)


@app.command()
def report(
    experiment: Annotated[str | None, typer.Argument(help="A search's name; default: the latest of the model.")] = None,
    model: Model = "iris",
    form: Annotated[Literal["html", "md", "json"], typer.Option("--format", help="What to write.")] = "html",
    output: Annotated[Path | None, typer.Option(help="File; default: .nas/report/EXPERIMENT.FORMAT; -: print.")] = None,
    target: On = AUTO,
    release: Release = None,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Write what a search tried, what it cost and what came out.

    The page shows its trials, curves and mistakes, and how to train its best model again.

    Example: nas report --model mnist
    """
    fetch.ensure(ROOT / "scripts/nas/report")
    from nas.engine import Places
    from nas.report import history, page

    cluster, name = _place(target, namespace, release, model)
    here = Places(ROOT, HOME)
    found = history.there(cluster, here, name, experiment) if cluster else history.here(here, model, experiment)
    page.write(found, form, output, HOME / "report")


@app.command(no_args_is_help=True, add_help_option=False, context_settings={"ignore_unknown_options": True})
def models(
    context: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="ACTION [DIGEST]", help="What to do, as told above.")],
    model: Model = "iris",
    target: On = AUTO,
    release: Release = None,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Look after the models in the store.

    list: versions and trials' models, the current one first. show, lineage: a model's manifest, and its ancestors.
    history: every decision with its reason. promote, rollback: choose the current model by hand, and pin it. unpin:
    let offers decide again. verify: check every version. gc: remove old ones, never what is served, pinned or young.
    offer: propose the model in a trial's folder, as each trial does when it ends. nas models ACTION --help tells more.

    Example: nas models list --model iris

    Example: nas models promote 3f2a --model iris

    Example: nas models gc --model iris --keep 3
    """
    if words[0] in context.help_option_names:
        return print(context.get_help())
    if {*words} & {*context.help_option_names}:
        store.main(words, "nas models", HOME / "model", model)  # which ends here
    cluster, name = _place(target, namespace, release, model)
    if cluster:
        raise typer.Exit(release_.models(cluster, ROOT, name, words))

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    raise typer.Exit(store.main(words, "nas models", HOME / "model", model))


@app.command("data")
def data_(
    name: Annotated[str, typer.Argument(help="The data set: mnist.")],
    folder: Annotated[Path | None, typer.Option("--from", help="A folder that has the four idx.gz files.")] = None,
) -> None:
    """Fetch what a trainer learns from, once, and check it.

    Example: nas data mnist --from /media/usb/mnist
    """
    print(f"{name} is in {files.shown(data.ensure(name, HOME / 'data', folder))}")


@app.command()
def doctor(values: Values = "iris", target: On = AUTO, namespace: Namespace = NAMESPACE) -> None:
    """Look whether a cluster has what a search needs.

    Says what mends what it lacks, and changes nothing.

    Example: nas doctor --target microk8s
    """
    cluster = Cluster(target, namespace, HOME) if target is Target.MICROK8S else _cluster(target, namespace)
    path = chart.values_file(ROOT, values)
    wanted = images.wanted(chart.render(ROOT, HOME, chart.release_name(path), [path], []))
    wrong = 0
    for finding in doctor_.findings(cluster, ROOT, wanted):
        wrong += bool(finding.mend)
        print(f"{'WRONG' if finding.mend else 'ok':6} {finding.subject:11} {finding.text}")
        if finding.mend:
            print(f"{'':18} -> {finding.mend}", flush=True)
    raise typer.Exit(1 if wrong else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def helm(context: typer.Context) -> None:
    """Call the helm that `nas run` uses.

    Example: nas helm template x charts/nas --values values/iris.yaml
    """
    path = chart.helm(HOME)
    os.execv(path, [str(path), *context.args])


@cluster_app.command()
def setup(
    target: On = AUTO,
    namespace: Namespace = NAMESPACE,
    manifests: Annotated[Path | None, typer.Option(exists=True, help="Katib's manifests, without internet.")] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Enable MicroK8s' dashboard too.")] = False,
    timeout: Annotated[int, typer.Option(help="Seconds each part has to become ready.")] = 600,
) -> None:
    """Install what searches need, and wait until it is ready.

    That is Katib, MicroK8s' add-ons and the namespace with its label. What is there stays.

    Example: nas cluster setup --target microk8s
    """
    if target is Target.LOCAL:
        raise NasError("a search on this machine needs no cluster: choose --target microk8s or --target cluster")
    chosen = Target.CLUSTER if target is Target.CLUSTER else Target.MICROK8S
    doctor_.setup(Cluster(chosen, namespace, HOME), manifests, dashboard, timeout)


@app.command("images", no_args_is_help=True)
def images_(
    action: Annotated[Literal["build", "import"], typer.Argument(help="What to do.")],
    names: Annotated[list[str] | None, typer.Argument(help="Images, by their folders' names in images/.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All images.")] = False,
    tag: Annotated[str, typer.Option(help="Their tag.")] = "latest",
    into: Annotated[str, typer.Option(help="microk8s, containerd, k3s, kind or minikube; default: seen.")] = "",
    push: Annotated[str, typer.Option(metavar="HOST/PATH", help="import: push to a registry instead.")] = "",
    target: On = AUTO,
) -> None:
    """Build the images and bring them to a cluster.

    build: with MNIST's files in those that need them; NAS_BUILD_ARGS has build arguments, BASE=…, INDEX=… and
    TORCH_INDEX=…. import: into the cluster's nodes, as a stream; what is there already is skipped.

    Example: nas images build tabular-trainer server

    Example: nas images import --all --target microk8s
    """
    if bool(names) == everything:
        raise NasError(f"which images? {', '.join(images.folders(ROOT))}, or --all")
    builder, runtime = images.Builder(), None
    if action == "import" and not push:
        runtime = images.Runtime(into) if into else images.detect(_cluster(target, NAMESPACE))
    for name in names or images.folders(ROOT):
        if action == "build":
            built = builder.build(ROOT, name, tag, HOME, show=True)
            print(f"image {built.name} {built.digest[7:19]}: {built.size / 1e6:.0f} MB", flush=True)
        elif runtime:
            runtime.bring(builder, builder.image(images.full(name, tag)))
        else:
            builder.push(images.full(name, tag), images.full(name, tag, push))


@app.command("artifacts", no_args_is_help=True)
def artifacts_(
    action: Annotated[Literal["list", "copy", "put"], typer.Argument(help="What to do.")],
    release: Annotated[str, typer.Option(help="A release on a cluster.")],
    source: Annotated[str, typer.Argument(help="On the claim, or here for put; copy: the promoted model.")] = "",
    destination: Annotated[str, typer.Argument(help="Here, or on the claim for put.")] = "",
    target: On = AUTO,
    namespace: Namespace = NAMESPACE,
) -> None:
    """See and copy the files on a release's claim.

    list: bytes, time (UTC) and path of each file. copy: a file or folder to this machine; a folder that is there gets
    it inside. put: from here to the claim. What is there already isn't copied again, and a broken copy goes on.

    Example: nas artifacts list iris/versions --release iris-nas

    Example: nas artifacts copy iris/versions ./versions --release iris-nas

    Example: nas artifacts put flowers.csv iris/inputs/flowers.csv --release iris-nas
    """
    if action == "put" and not (destination and Path(source).exists()):
        raise NasError(f"put takes a file or folder here, which {source!r} isn't, and its name on the claim")
    cluster = _cluster(target, namespace)
    with artifacts.opened(cluster, ROOT, release) as claim:
        if action == "list":
            print(claim.list(source), end="")
            return
        name = Path(source).name
        if not source:
            source, name = release_.current(cluster, claim, release)
        with meter(f"{action} {source}") as told:
            if action == "put":
                count = claim.put(Path(source), destination, told)
            else:
                folder = Path(destination)
                destination = str(folder / name if folder.is_dir() else folder)
                count = claim.copy(source, Path(destination), told)
    print(f"{files.count(count, 'file')} in {destination}, checksums compared")


def _become(script: str, *words: str) -> None:
    """Turn this process into one of the images' programs."""
    path = str(ROOT / "images" / script)
    os.environ.setdefault("NAS_DATA", str(HOME / "data"))
    os.execv(sys.executable, [sys.executable, path, "--store", str(HOME / "model"), *words])


def main() -> None:
    """Entry point: errors are one line on stderr and exit status 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: what was started is ended
    try:
        app()
    except (*TOLD, OSError) as error:
        sys.exit(f"error: {store.explain(error, Path(getattr(error, 'filename', None) or HOME))}")
    except KeyboardInterrupt:
        sys.exit(130)
