"""The command line `nas`."""

import hashlib
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from nas.cluster import NAMESPACE, Cluster, ClusterError, Target, choose
from nas.errors import NasError

ROOT = Path(__file__).parents[2]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # to a program with options of its own

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    help="Search, serve and score models: on this machine or a cluster, from the values files of the Helm chart.",
)


def _group(name: str, text: str) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=text)
    app.add_typer(group, name=name)
    return group


data_app = _group("data", "Fetch what trainers learn from, once.")
cluster_app = _group("cluster", "Prepare a cluster for searches.")
images_app = _group("images", "Build the images and bring them to a cluster.")
artifacts_app = _group("artifacts", "See and copy the files on a release's claim, through its bridge pod.")

On = Annotated[
    Target, typer.Option("--target", envvar="NAS_TARGET", help="Where: auto is MicroK8s with Katib, else this machine.")
]
Namespace = Annotated[str, typer.Option(envvar="NAS_NAMESPACE", help="The cluster's namespace.")]
Release = Annotated[str | None, typer.Option(help="A release on a cluster; default: MODEL-nas.")]
Build = Annotated[bool, typer.Option(help="On a cluster: build the images and bring them there.")]
ItsRelease = Annotated[str, typer.Option("--release", envvar="NAS_RELEASE", help="A release on a cluster.")]
Model = Annotated[str, typer.Option("--model", "-m", help="The model's name.")]


def _home() -> Path:
    return Path(os.environ.get("NAS_HOME", ROOT / ".nas")).absolute()


def _cluster(target: Target, namespace: str) -> Cluster:
    """The cluster a command is about. Raises ClusterError when `auto` finds none."""
    chosen, why = choose(target)
    if chosen is Target.LOCAL:
        raise ClusterError(f"no cluster to look at ({why}): --target cluster is the current kubeconfig context")
    return Cluster(chosen, namespace, _home())


def _place(target: Target, namespace: str, release: str | None, default: str) -> tuple[Cluster | None, str]:
    """The cluster and release that hold a model; no cluster: this machine does."""
    if release:
        return _cluster(target, namespace), release
    chosen, why = choose(target)
    if chosen is Target.LOCAL:
        return None, ""
    cluster = Cluster(chosen, namespace, _home())
    if target is Target.AUTO:
        try:
            cluster.values(default)
        except ClusterError as error:
            print(f"target: local ({error})", file=sys.stderr)
            return None, ""
    print(f"target: {chosen} ({why}), release {default}", file=sys.stderr)
    return cluster, default


class Form(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MARKDOWN = "md"
    JSON = "json"


@app.command()
def report(
    experiment: Annotated[str | None, typer.Argument(help="A search's name; default: the latest of the model.")] = None,
    model: Model = "iris",
    form: Annotated[Form, typer.Option("--format", help="What to write.")] = Form.HTML,
    output: Annotated[Path | None, typer.Option(help="File; default: .nas/report/EXPERIMENT.FORMAT; -: print.")] = None,
) -> None:
    """Write a search's report: trials, curves, cost, mistakes, and how to train its best model again.

    Example: nas report --model mnist
    """
    from nas import frameworks

    frameworks.ensure(ROOT / "scripts/nas/report")
    from nas.engine import Places
    from nas.report import history, write

    source = history.here(Places(ROOT, _home()), model, experiment)
    write(source, form.value, output, _home() / "report")


@app.command()
def run(
    values: Annotated[str, typer.Argument(help="A values file, or the name of one in values/.")],
    target: On = Target.AUTO,
    number: Annotated[int | None, typer.Option("--run", min=1, help="experiment.run; default: the next.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the latest interrupted run here.")] = False,
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
    from nas import local

    chosen, why = choose(target)
    print(f"target: {chosen} ({why})", flush=True)
    if chosen is Target.LOCAL:
        raise typer.Exit(local.run(ROOT, _home(), values, number, resume, settings or []))
    if resume:
        raise NasError("a search on a cluster goes on by itself: leave --resume out")
    from nas import release as release_

    path = local.values_file(ROOT, values)
    files = [ROOT / "values" / "microk8s.yaml", path] if chosen is Target.MICROK8S else [path]
    cluster, asked = Cluster(chosen, namespace, _home()), [f"experiment.run={number}"] if number else []
    name = release or local.release_name(path)
    raise typer.Exit(release_.run(cluster, ROOT, _home(), name, files, [*(settings or []), *asked], build))


@app.command()
def watch(
    release: Annotated[str, typer.Argument(help="A release on a cluster.")],
    target: On = Target.AUTO,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Follow a search on a cluster, or show one that is over.

    Example: nas watch iris-nas --target microk8s
    """
    from nas import release as release_

    raise typer.Exit(release_.watch(_cluster(target, namespace), ROOT, release))


@app.command()
def serve(
    model: Model = "iris",
    port: Annotated[int, typer.Option(help="TCP port.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    target: On = Target.AUTO,
    release: Release = None,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Serve the promoted model over HTTP until Ctrl-C; of a release on a cluster, forward its server to this machine.

    Example: nas serve --model iris --port 8000
    """
    cluster, name = _place(target, namespace, release, f"{model}-nas")
    if cluster is None:
        _become("server/serve.py", "--model", model, "--host", host, "--port", str(port))
    else:
        from nas import release as release_

        release_.serve(cluster, name, host, port)


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
    target: On = Target.AUTO,
    release: Release = None,
    namespace: Namespace = NAMESPACE,
    follow: Annotated[bool, typer.Option(help="On a cluster: wait for the Job and fetch its result.")] = True,
    build: Build = True,
) -> None:
    """Score files with the promoted model, on all cores; of a release on a cluster, by its batch Job.

    After a kill, the same command goes on where it was.

    Example: nas batch --model iris flowers.csv
    """
    from modelkit.store import Store

    from nas import data

    cluster, name = _place(target, namespace, release, f"{model}-nas")
    if cluster is not None:
        from nas import release as release_

        settings = [f"format={form}", f"onError={on_error}", f"probabilities={str(probabilities).lower()}"]
        settings += [f"keep={{{','.join(keep)}}}"] if keep else []
        release_.batch(cluster, ROOT, _home(), name, inputs or [], digest or "", settings, output, build, follow)
        return
    if not inputs:
        store = Store(_home() / "model", model)
        if store.current() and store.load().manifest.input.image is None:
            raise NasError(
                f"{model} takes rows of a table: name the files, for example: nas batch --model {model} f.csv"
            )
        data.ensure("mnist", _home() / "data")
    words = ["--format", form, "--on-error", on_error]
    words += ["--input", *map(str, inputs)] if inputs else []
    words += ["--keep", *keep] if keep else []
    words += ["--probabilities"] if probabilities else []
    digest = digest or Store(_home() / "model", model).current()
    words += ["--digest", digest] if digest else []
    if output is None:  # the same command finds its unfinished job again; another model or a changed file is a new one
        found = [path for given in inputs or [] for path in sorted(given.parent.glob(given.name)) or [given]]
        states = [(str(path), path.stat().st_mtime_ns if path.exists() else 0) for path in found]
        key = hashlib.sha256(repr([words, states]).encode()).hexdigest()[:8]
        output = _home() / "output" / model / f"{inputs[0].name.split('.')[0] if inputs else 'mnist-test'}-{key}"
    _become("batch/score.py", "--model", model, "--output", str(output), *words)


@app.command()
def doctor(
    values: Annotated[str, typer.Argument(help="The search to look for: a values file, or the name of one.")] = "iris",
    target: On = Target.AUTO,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Look whether a cluster has what a search needs, and say what mends what it lacks. Changes nothing.

    Example: nas doctor --target microk8s
    """
    from nas import chart, images, local
    from nas import doctor as doctor_

    cluster = Cluster(target, namespace, _home()) if target is Target.MICROK8S else _cluster(target, namespace)
    path = local.values_file(ROOT, values)
    wanted = images.wanted(chart.render(ROOT, _home(), local.release_name(path), [path], []))
    wrong = 0
    for finding in doctor_.findings(cluster, ROOT, _home(), wanted):
        wrong += bool(finding.mend)
        print(f"{'WRONG' if finding.mend else 'ok':6} {finding.subject:11} {finding.text}")
        if finding.mend:
            print(f"{'':18} -> {finding.mend}", flush=True)
    raise typer.Exit(1 if wrong else 0)


@cluster_app.command()
def setup(
    target: On = Target.AUTO,
    namespace: Namespace = NAMESPACE,
    manifests: Annotated[Path | None, typer.Option(exists=True, help="Katib's manifests, without internet.")] = None,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Enable MicroK8s' dashboard too.")] = False,
    timeout: Annotated[int, typer.Option(help="Seconds each part has to become ready.")] = 600,
) -> None:
    """Install Katib, MicroK8s' add-ons and the namespace with its label, and wait until they are ready; repeatable.

    Example: nas cluster setup --target microk8s
    """
    from nas import doctor as doctor_

    if target is Target.LOCAL:
        raise NasError("a search on this machine needs no cluster: choose --target microk8s or --target cluster")
    chosen = Target.CLUSTER if target is Target.CLUSTER else Target.MICROK8S
    doctor_.setup(Cluster(chosen, namespace, _home()), manifests, dashboard, timeout)


Names = Annotated[list[str] | None, typer.Argument(help="Images, by their folders' names in images/.")]
All = Annotated[bool, typer.Option("--all", help="All images.")]
Tag = Annotated[str, typer.Option(help="Their tag.")]
With = Annotated[str, typer.Option("--builder", help="docker, podman or buildah; default: the first that works.")]


@images_app.command("build")
def images_build(
    names: Names = None,
    everything: All = False,
    tag: Tag = "latest",
    settings: Annotated[
        list[str] | None, typer.Option("--build-arg", metavar="KEY=VALUE", help="BASE, INDEX or TORCH_INDEX.")
    ] = None,
    compressed: Annotated[
        bool, typer.Option("--compressed", help="Tell the compressed size too: it takes a while.")
    ] = False,
    builder: With = "",
) -> None:
    """Build images, with MNIST's files in those that need them.

    Example: nas images build tabular-trainer server
    """
    from nas import images

    tool = images.Builder(builder)
    for name in _named(names, everything):
        built = tool.build(ROOT, name, tag, _home(), settings or [], show=True)
        packed = f", {tool.packed(built.name) / 1e6:.0f} MB compressed" if compressed else ""
        print(f"image {built.name} {built.digest[7:19]}: {built.size / 1e6:.0f} MB{packed}", flush=True)


@images_app.command("import")
def images_import(
    names: Names = None,
    everything: All = False,
    tag: Tag = "latest",
    into: Annotated[str, typer.Option(help="microk8s, containerd, k3s, kind or minikube; default: seen.")] = "",
    push: Annotated[str, typer.Option(metavar="HOST/PATH", help="Push to a registry instead.")] = "",
    builder: With = "",
    target: On = Target.AUTO,
) -> None:
    """Bring built images into a cluster's nodes, as a stream; those that are there already are skipped.

    Example: nas images import --all --target microk8s
    """
    from nas import images
    from nas import release as release_

    tool = images.Builder(builder)
    runtime = None
    if not push:
        runtime = images.Runtime(into) if into else images.detect(_cluster(target, NAMESPACE))
    for name in _named(names, everything):
        image = tool.image(images.full(name, tag))
        if runtime:
            release_.bring(tool, runtime, image)
        else:
            tool.push(image.name, images.full(name, tag, push))


def _named(names: list[str] | None, everything: bool) -> list[str]:
    from nas import images

    if bool(names) == everything:
        raise NasError(f"which images? {', '.join(images.folders(ROOT))}, or --all")
    return names or images.folders(ROOT)


@artifacts_app.command("list")
def artifacts_list(
    path: Annotated[str, typer.Argument(help="A folder on the claim.")] = ".",
    release: ItsRelease = "",
    target: On = Target.AUTO,
    namespace: Namespace = NAMESPACE,
) -> None:
    """List the files on a claim: bytes, time (UTC), path.

    Example: nas artifacts list iris/versions --release iris-nas
    """
    from nas import artifacts

    with artifacts.opened(_cluster(target, namespace), ROOT, release) as claim:
        print(claim.list(path), end="")


@artifacts_app.command()
def copy(
    path: Annotated[str, typer.Argument(help="A file or folder on the claim; default: the promoted model.")] = "",
    destination: Annotated[Path, typer.Argument(help="Where to; an existing folder gets it inside.")] = Path(),
    release: ItsRelease = "",
    target: On = Target.AUTO,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Copy from a claim to this machine; what is here already isn't copied again, and a broken copy goes on.

    Example: nas artifacts copy iris/versions ./versions --release iris-nas
    """
    from nas import artifacts
    from nas import release as release_
    from nas.view import meter

    cluster = _cluster(target, namespace)
    with artifacts.opened(cluster, ROOT, release) as claim:
        name = Path(path).name
        if not path:
            path, name = release_.current(cluster, claim, release)
        place = destination / name if destination.is_dir() else destination
        with meter(f"copying {path}") as told:
            count = claim.copy(path, place, told)
    print(f"{count} {'file' if count == 1 else 'files'} in {place}, checksums compared")


@artifacts_app.command()
def put(
    source: Annotated[Path, typer.Argument(exists=True, help="A file or folder here.")],
    path: Annotated[str, typer.Argument(help="Its name on the claim.")],
    release: ItsRelease = "",
    target: On = Target.AUTO,
    namespace: Namespace = NAMESPACE,
) -> None:
    """Copy from this machine to a claim, in the same way.

    Example: nas artifacts put flowers.csv iris/inputs/flowers.csv --release iris-nas
    """
    from nas import artifacts
    from nas.view import meter

    with artifacts.opened(_cluster(target, namespace), ROOT, release) as claim, meter(f"sending {source}") as told:
        count = claim.put(source, path, told)
    print(f"{count} {'file' if count == 1 else 'files'} in {path} on the claim, checksums compared")


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
def models(
    context: typer.Context, target: On = Target.AUTO, release: Release = None, namespace: Namespace = NAMESPACE
) -> None:
    """List, show, promote, rollback, unpin, verify or gc the models in the store.

    Example: nas models list --model iris
    """
    words = context.args or ["--help"]
    model = next((b for a, b in zip(["", *words], [*words, ""], strict=True) if a in ("--model", "-m")), "")
    cluster, name = _place(target, namespace, release, f"{model}-nas") if release or model else (None, "")
    if cluster:
        from nas import release as release_

        raise typer.Exit(release_.models(cluster, ROOT, name, words))
    from modelkit import store

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    raise typer.Exit(store.main(words, prog="nas models", root=_home() / "model"))


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
    from modelkit import artifact, files, store

    message = ""
    try:
        app()
    except (NasError, store.StoreError, artifact.ArtifactError, files.LockError) as error:
        message = str(error)
    except OSError as error:
        message = store.explain(error, Path(error.filename or _home()))
    except KeyboardInterrupt:
        sys.exit(130)
    if message:
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)
