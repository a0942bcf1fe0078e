"""What a CronJob of the chart runs: create the next Experiment, and follow it until it is over.

The template is the Experiment that the chart renders, as JSON, with @NAME@, @SEED@, @JOB@ and @UID@ where values go.
The Experiment belongs to the Job (NAS_JOB, NAS_JOB_UID) that this process is a pod of: a pod that is started again
finds it, and Kubernetes removes it with the Job. The right to create and to read Experiments is all that is needed.
"""

import argparse
import contextlib
import datetime
import http.client
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path
from typing import Any

from modelkit.store import Store, StoreError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # the pod's; its token is renewed meanwhile
POLL = 5.0  # seconds between two looks at the search
FAILED, AGAIN = 1, 75  # exit statuses: the search failed or was refused; another try may go better
Manifest = dict[str, Any]
Unanswered = (OSError, http.client.HTTPException, json.JSONDecodeError)  # from an API server or a network that is down


def ask(path: str = "", new: Manifest | None = None) -> Manifest:
    """What is at `path` below this namespace's Experiments: a name, or a query; `new` is created.

    Raises one of Unanswered: a urllib.error.HTTPError when the API server or Katib's webhook refuses it.
    """
    namespace = (ACCOUNT / "namespace").read_text()
    url = f"https://kubernetes.default.svc/apis/kubeflow.org/v1beta1/namespaces/{namespace}/experiments{path}"
    headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(new).encode() if new else None, headers)
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    trust.verify_flags &= ~ssl.VERIFY_X509_STRICT  # clusters' own authorities lack extensions it asks for
    with urllib.request.urlopen(request, context=trust, timeout=30) as answer:
        found: Manifest = json.load(answer)
    return found


def end(experiment: Manifest) -> Manifest | None:
    """The condition with which an Experiment ended, Succeeded or Failed; None while it runs."""
    conditions = experiment.get("status", {}).get("conditions", [])
    ends = [c for c in conditions if c["type"] in ("Succeeded", "Failed") and c["status"] == "True"]
    return ends[0] if ends else None


def next_experiment(template: str, base: str, now: datetime.datetime, job: str, uid: str) -> Manifest:
    """The Experiment BASE-YYYYMMDD-HHMM (UTC), owned by the Job `job`, with a seed of its own."""
    name = f"{base}-{now:%Y%m%d-%H%M}"
    values = {"@NAME@": name, "@SEED@": str(zlib.adler32(name.encode()) % (2**31 - 1)), "@JOB@": job, "@UID@": uid}
    for placeholder, value in values.items():
        template = template.replace(placeholder, value)
    experiment: Manifest = json.loads(template)
    return experiment


def _choose(template: str, args: argparse.Namespace) -> str | None:
    """The name of the Experiment to follow, created unless this Job has one; None when there is nothing to do."""
    job, uid = os.environ["NAS_JOB"], os.environ["NAS_JOB_UID"]
    mine = ask("?labelSelector=" + urllib.parse.quote(f"nas/job={uid}"))["items"]
    if mine:
        name: str = mine[0]["metadata"]["name"]
        print(f"{name} is there: following it", flush=True)
        return name
    experiment = next_experiment(template, args.base, datetime.datetime.now(datetime.UTC), job, uid)
    model = experiment["metadata"]["annotations"]["nas/model"]
    if args.data_digest:
        digest = args.data_digest.read_text().strip()
        if not digest:
            raise OSError(f"{args.data_digest} is empty: the trainer told no digest of its data")
        if Store(args.root, model).has_seen(digest):
            print(f"no search: a model of {model} has learned from this data ({digest}) already", flush=True)
            return None
    for other in ask()["items"]:
        if other["metadata"].get("annotations", {}).get("nas/model") == model and not end(other):
            print(f"no search: {other['metadata']['name']} still runs", flush=True)
            return None
    ask(new=experiment)
    name = experiment["metadata"]["name"]
    print(f"{name} is created", flush=True)
    return name


def _follow(name: str) -> int:
    """Wait until the Experiment is over, and tell how it ended. An API server that is away for a while is awaited."""
    while True:
        try:
            over = end(ask(f"/{name}"))
        except Unanswered as error:
            if _final(error):
                raise
            print(f"the API server can't be asked ({error}): trying again", flush=True)
            over = None
        if over:
            print(f"{name}: {over['type']}: {over.get('message') or over.get('reason', '')}", flush=True)
            return 0 if over["type"] == "Succeeded" else FAILED
        time.sleep(POLL)


def _final(error: Exception) -> bool:
    """Whether the API server has answered, and won't change its mind."""
    return isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code != 429


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0 for a search that succeeded or wasn't needed, FAILED, or AGAIN."""
    parser = argparse.ArgumentParser(prog="python3 -m modelkit.schedule", description=__doc__)
    parser.add_argument("template", type=Path, help="the Experiment as JSON, with placeholders")
    parser.add_argument("--base", required=True, help="what the Experiment's name begins with")
    parser.add_argument("--root", type=Path, default=Path("/model"), help="the store's folder (default: %(default)s)")
    parser.add_argument("--data-digest", type=Path, help="a file: skip the search if a model learned from these data")
    args = parser.parse_args(argv)
    try:
        name = _choose(args.template.read_text(), args)
        return _follow(name) if name else 0
    except urllib.error.HTTPError as error:
        told = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError):
            told = json.loads(told)["message"]
        print(f"error: the API server answers {error.code}: {told}", file=sys.stderr)
        return FAILED if _final(error) else AGAIN
    except (StoreError, *Unanswered) as error:
        print(f"error: {error}", file=sys.stderr)
        return AGAIN


if __name__ == "__main__":
    sys.exit(main())
