"""A release of the chart on a cluster: its images, its search, its models, its batch Job, its server."""

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
from modelkit import artifact

from nas import artifacts, bridge, chart, images
from nas.cluster import Cluster, image_name, trouble
from nas.errors import NasError
from nas.experiment import Manifest
from nas.follow import Follower
from nas.progress import condition
from nas.view import View, meter, next_commands

START = 300.0  # seconds a batch Job's pods have to start
AT_ONCE = 5.0  # seconds after which a connection that ends has worked; before, its port may be in use


def run(cluster: Cluster, root: Path, release: str, values: list[Path], settings: list[str], build: bool) -> int:
    """Images, `helm upgrade --install`, and the search until it is over; the exit status. Raises NasError."""
    rendered = chart.render(root, cluster.home, release, values, settings)
    name = chart.experiment(rendered, values[-1])["metadata"]["name"]
    outdated = build and deliver(cluster, root, images.wanted(rendered))
    restart = outdated and cluster.objects("Deployment", f"app.kubernetes.io/instance={release}")
    cluster.upgrade("--install", release, str(root / "charts" / "nas"), *chart.options(values, settings))
    print(f"release {release} is installed in namespace {cluster.namespace}", flush=True)
    if restart:
        print("its pods run older images: restarting them", flush=True)
        cluster.call("rollout", "restart", "deployment,statefulset", f"--selector=app.kubernetes.io/instance={release}")
    return watch(cluster, root, release, name)


def watch(cluster: Cluster, root: Path, release: str, name: str = "") -> int:
    """Follow a release's search until it is over, or show one that is; the exit status. Raises NasError."""
    found = cluster.objects("Experiment", f"app.kubernetes.io/instance={release}")
    found = [manifest for manifest in found if name in ("", manifest["metadata"]["name"])]
    if not found:
        raise NasError(f"no search of release {release} in namespace {cluster.namespace}: nas run VALUES starts one")
    manifest = max(found, key=lambda m: str(m["metadata"]["creationTimestamp"]))
    search = Follower(cluster, manifest)
    view, was_over = View(search), search.over
    try:
        with view:
            search.follow(view)
    except KeyboardInterrupt:
        view.note(f"the search goes on; to come back to it: nas watch {release} {cluster.options}")
        return 130
    with artifacts.opened(cluster, root, release) as claim:
        kept = claim.kept(search.experiment.model, experiment=search.experiment.name, adopt=True)
    for trial in search.trials:
        trial.reports = kept["epochs"].get(trial.name, trial.reports)
    current = msgspec.convert(kept["manifest"], artifact.Manifest) if kept["manifest"] else None
    place = f"{kept['place']} on the claim; here by: nas artifacts copy --release {release} {cluster.options}"
    after = next_commands(current, f" TARGET={cluster.target}") if current else []
    if current and release != f"{current.model}-nas":  # the release that make looks for
        after[0] = f"nas serve --release {release} {cluster.options}"
    view.summary(current, place, after, kept["reasons"])
    if was_over:
        view.note("this search was over already; for a new one: experiment.run, such as nas run … --run 2")
    if search.state == "Failed" or search.best is None:
        raise NasError(f"the search failed: {search.reason}; see {cluster.words('describe', 'trials')}")
    return 0


def deliver(cluster: Cluster, root: Path, references: list[str]) -> bool:
    """Build these images and bring them where the cluster gets them from: its nodes, or the registry in their names.

    Images that aren't this project's, or are named by a digest, are left alone. Whether the nodes have new ones now.
    Raises NasError.
    """
    ours = [name for name in references if image_name(name) in images.folders(root) and "@" not in name]
    runtime = images.detect(cluster) if any("/" not in name for name in ours) else None
    builder, new = images.Builder(), False
    for reference in ours:
        tag = reference.rpartition("/")[2].partition(":")[2] or "latest"
        built = builder.build(root, image_name(reference), tag, cluster.home, show=False)
        if "/" in reference:
            builder.push(built.name, reference)
        elif runtime:
            new |= runtime.bring(builder, built)
    return new


def models(cluster: Cluster, root: Path, release: str, words: list[str]) -> int:
    """Run the store's command line in the cluster, for the release's model; its exit status. Raises NasError."""
    model = str(cluster.values(release)["global"]["model"])
    with artifacts.opened(cluster, root, release) as claim:
        program = ["python3", "-m", "modelkit.store", *words, "--model", model]
        command = cluster.command("exec", claim.pod, "--", *program)
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    said = [line for line in result.stderr.splitlines() if "terminated with exit code" not in line]
    print(*said, sep="\n", end="\n" if said else "", file=sys.stderr)
    return result.returncode


def serve(cluster: Cluster, release: str, host: str, port: int) -> None:
    """Make a release's server reachable on this machine until Ctrl-C. Raises NasError."""
    service = cluster.values(release)["serving"]
    if not service["enabled"]:
        raise NasError(f"release {release} has no server: nas run VALUES --set serving.enabled=true")
    name, began = f"{release}-serving", 0.0
    ready = cluster.command("rollout", "status", f"deployment/{name}")
    ports = ["--address", host, f"service/{name}", f"{port}:{service['service']['port']}"]
    while not began or time.monotonic() - began > AT_ONCE:
        print(f"waiting for deployment {name}, which is ready with the first promoted model", flush=True)
        if subprocess.run(ready, check=False).returncode:
            raise NasError(f"deployment {name} isn't ready (see above): `nas watch {release}` shows its search")
        began = time.monotonic()
        subprocess.run(cluster.command("port-forward", *ports), check=False)  # ends with the server's pod
    raise NasError(f"{name} can't be reached on port {port} (see above): another --port may help")


def current(cluster: Cluster, claim: artifacts.Claim, release: str) -> tuple[str, str]:
    """The folder of a release's promoted model on the claim, and the model's name. Raises NasError."""
    model = str(cluster.values(release)["global"]["model"])
    if not (place := str(claim.kept(model)["place"])):
        raise NasError(f"no model of {model!r} has been promoted yet: nas watch {release} {cluster.options}")
    return place, model


def batch(
    cluster: Cluster, root: Path, release: str, settings: Manifest, output: Path | None, build: bool, follow: bool
) -> None:
    """Score with a release's batch Job and, to `follow` it, show what it prints and bring its result home.

    `settings` are keys of the chart's batch part; it decides where they are None or empty. Their `inputs` are files
    here. The version is part of the Job, so that the same rows aren't scored twice by the same model. Raises NasError.
    """
    with artifacts.opened(cluster, root, release) as claim:
        folder, model = current(cluster, claim, release)
        # With the content in its name, a changed file makes another Job.
        names = {path: f"/model/{model}/inputs/{bridge.digest(path)[:12]}/{path.name}" for path in settings["inputs"]}
        for path, name in names.items():
            with meter(f"sending {path.name}") as told:
                claim.put(path, name, told)
        given = {key: value for key, value in settings.items() if value not in (None, [])}
        settings = {"enabled": True, "digest": Path(folder).name, **given}
        if names:
            settings["inputs"] = list(names.values())
        job = cluster.template(release, root, "batch/job", settings)
        if build:
            deliver(cluster, root, images.wanted([job]))
        words = [release, str(root / "charts" / "nas"), "--reset-then-reuse-values", "--values", "-"]
        cluster.upgrade(*words, stdin=json.dumps({"batch": settings}))
        name = job["metadata"]["name"]
        print(f"batch Job {name}, version {settings['digest'][:12]}", flush=True)
        if not follow:
            print(
                f"it goes on; for its result, the same command with --digest {settings['digest']} --follow", flush=True
            )
            return
        _follow_job(cluster, name)
        place = f"{model}/predictions/{name.rpartition('-')[2]}"  # as the Job's --output says
        target = output or cluster.home / "output" / model / Path(place).name
        with meter("fetching the result") as told:
            claim.copy(place, target, told)
    print(f"result    {target}")


def _follow_job(cluster: Cluster, name: str) -> None:
    """Print what a Job's pods print until it is done. Raises NasError when it fails or can't start."""
    deadline, shown = time.monotonic() + START, set[str]()
    while True:
        job = cluster.get("Job", name) or {}
        pods = cluster.objects("Pod", f"batch.kubernetes.io/job-name={name}")
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            title = pod["metadata"]["name"]
            if pod["status"]["phase"] != "Pending" and title not in shown:
                shown.add(title)
                subprocess.run(cluster.command("logs", "--follow", title), check=False)
        if condition(job, "Complete"):
            return
        look = cluster.words("describe", f"job/{name}")
        if failed := condition(job, "Failed"):
            raise NasError(f"the batch Job {name} failed: {failed.get('message', '')}; see {look}")
        why = next(filter(None, map(trouble, pods)), "")
        if (not shown and time.monotonic() > deadline) or "Image" in why:
            raise NasError(f"the batch Job {name} doesn't start: {why or 'it has no pod'}; see {look}")
        time.sleep(0.5)
