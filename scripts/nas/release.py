"""A release of the chart on a cluster: its images, its search, its models, its batch Job, its server."""

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import yaml
from modelkit import artifact
from rich.console import Console

from nas import artifacts, bridge, chart, images, local
from nas.cluster import Cluster, image_name, trouble
from nas.errors import NasError
from nas.experiment import Manifest
from nas.follow import Follower, sigterm_as_interrupt
from nas.progress import condition
from nas.view import View, meter, next_commands

START = 300.0  # seconds a batch Job's pods have to start


def run(
    cluster: Cluster, root: Path, home: Path, release: str, values: list[Path], settings: list[str], build: bool
) -> int:
    """Images, `helm upgrade --install`, and the search until it is over; the exit status. Raises NasError."""
    rendered = chart.render(root, home, release, values, settings)
    name = chart.experiment(rendered, values[-1])["metadata"]["name"]
    built = deliver(cluster, root, home, images.wanted(rendered)) if build else {}
    cluster.helm("upgrade", "--install", release, str(root / "charts" / "nas"), *chart.options(values, settings))
    print(f"release {release} is installed in namespace {cluster.namespace}", flush=True)
    _restart_outdated(cluster, release, built)
    return watch(cluster, root, release, name)


def watch(cluster: Cluster, root: Path, release: str, name: str = "") -> int:
    """Follow a release's search until it is over, or show one that is; the exit status. Raises NasError."""
    found = cluster.objects("Experiment", f"app.kubernetes.io/instance={release}")
    found = [manifest for manifest in found if name in ("", manifest["metadata"]["name"])]
    if not found:
        raise NasError(f"no search of release {release} in namespace {cluster.namespace}: nas run VALUES starts one")
    manifest = max(found, key=lambda m: str(m["metadata"]["creationTimestamp"]))
    search, view = Follower(cluster, manifest), View(Console(highlight=False))
    view.search = search
    was_over = search.over
    try:
        with view:
            search.follow(view)
    except KeyboardInterrupt:
        view.note(f"the search goes on; to come back to it: nas watch {release} {cluster.options}")
        return 130
    with artifacts.opened(cluster, root, release) as claim:
        gate = msgspec.to_builtins(local.gate_of(search.experiment))
        asked = {"model": search.experiment.model, "experiment": search.experiment.name, "gate": gate}
        kept = claim.ask("kept", asked)
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


def _restart_outdated(cluster: Cluster, release: str, built: dict[str, str]) -> None:
    """Restart bridge and server where they run an older image: pods keep the one they started with."""
    kinds, outdated = {"bridge": "statefulset", "serving": "deployment"}, set()
    for pod in cluster.objects("Pod", f"app.kubernetes.io/instance={release}"):
        part = pod["metadata"]["labels"].get("app.kubernetes.io/name", "")
        wanted = built.get(image_name(pod["spec"]["containers"][0]["image"]))
        runs = "".join(status.get("imageID", "") for status in pod["status"].get("containerStatuses") or [])
        if part in kinds and wanted and runs and wanted not in runs:
            outdated.add(f"{kinds[part]}/{release}-{part}")
    for name in sorted(outdated, reverse=True):
        print(f"{name} runs an older image: restarting it", flush=True)
        cluster.call("rollout", "restart", name)
        if name.startswith("statefulset"):
            cluster.call("rollout", "status", name, f"--timeout={START:.0f}s")


def deliver(cluster: Cluster, root: Path, home: Path, references: list[str]) -> dict[str, str]:
    """Build these images and bring them where the cluster gets them from: its nodes, or the registry in their names.

    Images that aren't this project's, or are named by a digest, are left alone. Returns the ids of those that the nodes
    have now, by the images' names. Raises NasError.
    """
    ours = [name for name in references if image_name(name) in images.folders(root) and "@" not in name]
    local = [name for name in ours if "/" not in name]
    runtime = images.runtime("", cluster) if local else None
    try:
        builder = images.Builder()
    except NasError:
        lacking = [n for n in local if runtime and not all(runtime.ids(images.full(n), node) for node in runtime.nodes)]
        if lacking or len(local) < len(ours):
            raise
        print("images are there already; none is built", flush=True)
        return {}
    brought = {}
    for reference in ours:
        folder, _, tag = reference.rpartition("/")[2].partition(":")
        built = builder.build(root, folder, tag or "latest", home, [], show=False)
        if "/" in reference:
            builder.push(built.name, reference)
        elif runtime:
            bring(builder, runtime, built)
            brought[folder] = built.digest
    return brought


def bring(builder: images.Builder, runtime: images.Runtime, image: images.Image) -> None:
    """Import one image, and say so."""
    started = time.monotonic()
    with meter(f"importing {image.name}", image.size) as (told, _):
        new = runtime.bring(builder, image, told)
    took = f"imported in {time.monotonic() - started:.1f} s" if new else "there already"
    print(f"image {image.name} {image.digest[7:19]}, {image.size / 1e6:.0f} MB, {runtime.name}: {took}", flush=True)


def models(cluster: Cluster, root: Path, release: str, words: list[str]) -> int:
    """Run the store's command line in the cluster; its exit status. Raises NasError."""
    if not any(word.split("=")[0] in ("--model", "--help", "-h") for word in words):
        words = [*words, "--model", str(cluster.values(release)["global"]["model"])]
    with artifacts.opened(cluster, root, release) as claim:
        command = cluster.command("exec", claim.pod, "--", "python3", "-m", "modelkit.store", *words)
        result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    print(
        result.stderr.replace(f"command terminated with exit code {result.returncode}\n", ""), end="", file=sys.stderr
    )
    return result.returncode


def serve(cluster: Cluster, release: str, host: str, port: int) -> None:
    """Make a release's server reachable on this machine until Ctrl-C. Raises NasError."""
    service = cluster.values(release)["serving"]
    if not service["enabled"]:
        raise NasError(f"release {release} has no server: set serving.enabled to true")
    name = f"{release}-serving"
    print(f"waiting for deployment {name}, which is ready with the first promoted model", flush=True)
    if subprocess.run(cluster.command("rollout", "status", f"deployment/{name}"), check=False).returncode:
        raise NasError(f"deployment {name} isn't ready (see above): `nas watch {release}` shows its search")
    forward = cluster.command(
        "port-forward", "--address", host, f"service/{name}", f"{port}:{service['service']['port']}"
    )
    with sigterm_as_interrupt():
        short = 0  # connections in a row that ended at once, such as with a port in use
        while short < 5:
            began, process = time.monotonic(), subprocess.Popen(forward)
            try:
                status = process.wait()
                time.sleep(1)
            finally:
                process.kill()
                process.wait()
            short = short + 1 if time.monotonic() - began < 5 else 0
            print(f"the connection to {name} ended (status {status}); connecting again", flush=True)
        raise NasError(f"{name} can't be reached on port {port} (see above): another --port may help")


def current(cluster: Cluster, claim: artifacts.Claim, release: str) -> tuple[str, str]:
    """The folder of a release's promoted model on the claim, and the model's name. Raises NasError."""
    model = str(cluster.values(release)["global"]["model"])
    manifest = claim.ask("kept", {"model": model})["manifest"]
    if manifest is None:
        raise NasError(f"no model of {model!r} has been promoted yet: nas watch {release} {cluster.options}")
    return f"{model}/versions/{manifest['digest']}", model


def batch(
    cluster: Cluster,
    root: Path,
    home: Path,
    release: str,
    inputs: list[Path],
    digest: str,
    settings: list[str],
    output: Path | None,
    build: bool,
    follow: bool,
) -> None:
    """Score with a release's batch Job, show what it prints, and bring its result home.

    `settings` are further keys of the chart's batch part. The version is part of the Job, so that the same rows aren't
    scored twice by the same model. Raises NasError.
    """
    values = cluster.values(release)
    with artifacts.opened(cluster, root, release) as claim:
        folder, model = current(cluster, claim, release)
        digest = digest or folder.rpartition("/")[2]
        settings = ["enabled=true", f"digest={digest}", *settings]
        # With the content in its name, a changed file makes another Job.
        names = {path: f"{model}/inputs/{bridge.digest(path)[:12]}/{path.name}" for path in inputs}
        for path, name in names.items():
            with meter(f"sending {path.name}") as (told, begin):
                claim.put(path, name, told, begin)
        if inputs:
            settings.append(f"inputs={{{','.join(f'/model/{name}' for name in names.values())}}}")
        words = []
        for setting in settings:
            words += ["--set-string" if setting.startswith("digest") else "--set", f"batch.{setting}"]
        template = [release, str(root / "charts" / "nas"), *words]
        only = ["--show-only", "charts/batch/templates/job.yaml", "--values", "-"]
        job: Manifest = yaml.safe_load(cluster.helm("template", *template, *only, stdin=json.dumps(values)))
        if build:
            deliver(cluster, root, home, images.wanted([job]))
        cluster.helm("upgrade", *template, "--reset-then-reuse-values")
        name = job["metadata"]["name"]
        print(f"batch Job {name}, version {digest[:12]}", flush=True)
        if not follow:
            print(f"see {cluster.words('logs', '--follow', f'job/{name}')}")
            return
        _follow_job(cluster, name)
        words = job["spec"]["template"]["spec"]["containers"][0]["args"]
        place = next(word for word in words if word.startswith("--output=")).removeprefix("--output=/output/")
        target = output or home / "output" / model / Path(place).name
        with meter("fetching the result") as (told, begin):
            claim.copy(place, target, told, begin)
    print(f"result    {target}")


def _follow_job(cluster: Cluster, name: str) -> None:
    """Print what a Job's pods print until it is done. Raises NasError when it fails or can't start."""
    selector, deadline = f"batch.kubernetes.io/job-name={name}", time.monotonic() + START
    shown: set[str] = set()
    while True:
        job = cluster.get("Job", name) or {}
        pods = cluster.objects("Pod", selector)
        for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
            title = pod["metadata"]["name"]
            if pod["status"]["phase"] != "Pending" and title not in shown:
                shown.add(title)
                subprocess.run(cluster.command("logs", "--follow", title), check=False)
        if condition(job, "Complete"):
            return
        if failed := condition(job, "Failed"):
            raise NasError(f"the batch Job {name} failed: {failed.get('message', '')}")
        why = next(filter(None, map(trouble, pods)), "")
        if (not shown and time.monotonic() > deadline) or "Image" in why:
            raise NasError(f"the batch Job {name} doesn't start: {why or 'it has no pod'}")
        time.sleep(0.5)
