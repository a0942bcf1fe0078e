"""The store: every trial's best model, the versions promoted from them, and which one is current.

    <root>/<model>/trials/<experiment>/<trial>/   a trial's best model; locked while the trial runs
    <root>/<model>/versions/<sha256>/             immutable, content-addressed
    <root>/<model>/CURRENT                        one line, the sha256 of what is served; the only truth
    <root>/<model>/PINNED                         there while a person's choice holds: offers only record
    <root>/<model>/history.jsonl                  every decision with its reason

Commit order is version, (pin,) CURRENT, history: a process killed anywhere leaves a store that is whole.
"""

import argparse
import contextlib
import datetime
import difflib
import errno
import json
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from modelkit import artifact, files
from modelkit.artifact import Gate

OFFERED = ".offered"
DAY = 24 * 3600.0
Decision = Literal["promoted", "kept", "recorded", "refused", "pinned", "rolled back", "unpinned"]
MADE_CURRENT = ("promoted", "pinned", "rolled back")  # the decisions that did


class StoreError(Exception):
    """What the store can't do, why, and what to do about it."""


class Event(msgspec.Struct, omit_defaults=True):
    """One line of the history.

    `accuracy` and `current_accuracy` are those the decision compared, on the same rows; `p_value` is the chance of so
    large a gain between models that are equally good; `current_learned` the share of those rows, about, that the
    current model was trained on, which favours it: None where that is none by its making or not known.
    """

    time: str
    event: Decision
    digest: str
    reason: str
    previous: str | None = None
    trial: str | None = None
    accuracy: float | None = None
    current_accuracy: float | None = None
    p_value: float | None = None
    current_learned: float | None = None
    data_digest: str = ""


class Ground(msgspec.Struct, frozen=True):
    """What an offering trial compares on: its data digest, which of its validation rows any model gets right, and the
    share of them that a model learned from (None: not known)."""

    data_digest: str
    outcomes: Callable[[artifact.Model], artifact.Outcomes]
    seen: Callable[[artifact.Manifest], float | None] = lambda _: None


class Entry(msgspec.Struct, frozen=True):
    """A model in the store: a version, or a trial's best that was never promoted."""

    folder: Path
    manifest: artifact.Manifest


class Store:
    """The part of a store that belongs to one model. Nothing is created before something is written."""

    def __init__(self, root: Path, model: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", model):
            raise StoreError(f"model name {model!r}: letters, digits, '.', '_' and '-' only")
        self.root, self.model = root, model
        self.folder = root / model

    # Reading

    def current(self) -> str | None:
        """The digest of what is served, None before the first promotion. Safe to poll."""
        return self._line("CURRENT")

    def pinned(self) -> str | None:
        """The digest a person chose, None when offers decide."""
        return self._line("PINNED")

    def version(self, digest: str) -> Path:
        """The folder of a version."""
        return self.folder / "versions" / digest

    def load(self, digest: str | None = None, threads: int = 1) -> artifact.Model:
        """The version `digest`, or CURRENT. Raises StoreError when there is none, ArtifactError when it is broken."""
        if not (chosen := digest or self.current()):
            raise StoreError(self.nothing())
        try:
            return artifact.load(self.version(chosen), chosen, threads)
        except artifact.ArtifactError as error:
            raise artifact.ArtifactError(
                f"{error}: `rollback` or `promote DIGEST` makes another one current"
            ) from error

    def entries(self) -> list[Entry]:
        """Versions and trials' models that can be read, newest first. Broken ones: see `verify`."""
        found = {}
        for folder in [*self._trials(), *self.versions()]:  # a version counts before its trial
            with contextlib.suppress(artifact.ArtifactError):
                manifest, _ = artifact.read(folder)
                found[manifest.digest] = Entry(folder, manifest)
        return sorted(found.values(), key=lambda entry: entry.manifest.created, reverse=True)

    def find(self, prefix: str | None = None) -> Entry:
        """The model whose digest starts with `prefix` (None: CURRENT). Raises StoreError when none or several do.

        ArtifactError when CURRENT's is broken.
        """
        if not (start := self.current() if prefix is None else prefix):
            raise StoreError(self.nothing() if prefix is None else "an empty digest names no model")
        with contextlib.suppress(*[] if prefix is None else [artifact.ArtifactError]):
            return self._version(start)
        matches = [entry for entry in self.entries() if entry.manifest.digest.startswith(start.lower())]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise StoreError(f"{start} fits {len(matches)} models of {self.model!r}: give more of the digest")
        raise StoreError(f"no model {start!r} of {self.model!r} in {self.root}: `list` shows what is there")

    def lineage(self, prefix: str | None = None) -> list[Entry | str]:
        """The model of a digest (its start is enough; None: CURRENT), its parent, and so on to the first ancestor.

        A parent that is gone ends the list by its digest alone. Raises StoreError when there is no such model.
        """
        line: list[Entry | str] = [entry := self.find(prefix)]
        seen = set()  # a version that is promoted again may be its own ancestor
        while (parent := entry.manifest.parent) and parent not in seen:
            seen.add(parent)
            try:
                line.append(entry := self._version(parent))
            except artifact.ArtifactError:
                return [*line, parent]
        return line

    def history(self) -> list[Event]:
        """Every event, oldest first; a torn last line is passed over."""
        events = []
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "history.jsonl").read_bytes().splitlines():
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                    events.append(msgspec.json.decode(line, type=Event))
        return events

    def has_seen(self, data_digest: str) -> bool:
        """Whether a model that learned from that data was judged, whatever came of it. A failed trial's wasn't."""
        sought = data_digest.removeprefix("sha256:")
        return any(event.data_digest == sought and event.accuracy is not None for event in self.history())

    def verify(self) -> list[str]:
        """What is wrong with versions, CURRENT and PINNED: one sentence each, none when all is well."""
        problems = []
        for folder in self.versions():
            try:
                artifact.load(folder, folder.name)
            except artifact.ArtifactError as error:
                problems.append(str(error))
        for name in ("CURRENT", "PINNED"):
            digest = self._line(name)
            if digest is not None and not self.version(digest).is_dir():
                problems.append(f"{self.folder / name} names {digest[:12]}…, which is not in the store")
        return problems

    # Writing

    def offer(self, folder: Path, ground: Ground | None = None) -> Event:
        """Propose the model in a trial's `folder`; promote it when it passes the gate its manifest asks for.

        Models of trials that were killed before they could offer are judged first. Raises StoreError, LockError,
        OSError.
        """
        folder = folder.resolve()
        if not (folder / artifact.MODEL_FILE).is_file():
            raise StoreError(f"no {artifact.MODEL_FILE} in {folder}: offer a trial's folder, which has one")
        with self._locked():
            self._adopt(ground, offering=folder)
            return self._judge(folder, ground)

    def adopt(self) -> list[Event]:
        """Offer the models of trials that were killed before they could. Raises as `offer`."""
        if all((folder / OFFERED).exists() for folder in self._trials()):
            return []
        with self._locked():
            return self._adopt(None)

    def refuse(self, folder: Path, reason: str) -> Event:
        """Record that the model in a trial's `folder` is not to be promoted. Raises as `offer`."""
        with self._locked():
            manifest, _ = artifact.read(folder)
            event = Event(_now(), "refused", manifest.digest, reason, data_digest=manifest.data_digest)
            return self._close(folder, event)

    def promote(self, prefix: str, reason: str = "promoted by hand") -> Event:
        """Make the model with that digest CURRENT, and pin it until `unpin`. Raises StoreError, ArtifactError."""
        with self._locked():
            entry = self.find(prefix)
            artifact.load(entry.folder, entry.manifest.digest)
            return self._pin(self._commit(entry.folder, entry.manifest), "pinned", reason)

    def rollback(self) -> Event:
        """Make CURRENT what it was before its last change, and pin it. Raises StoreError when there is nothing."""
        with self._locked():
            line: list[str] = []  # of what was current, without what was rolled back
            for event in self.history():
                while event.event == "rolled back" and line and line[-1] != event.digest:
                    line.pop()
                if event.event in MADE_CURRENT:
                    line.append(event.digest)
            current = self.current()
            earlier = [digest for digest in line if digest != current and self.version(digest).is_dir()]
            if not earlier:
                raise StoreError(f"{self.model!r} has no earlier version to go back to: `promote DIGEST` chooses one")
            artifact.load(self.version(earlier[-1]), earlier[-1])
            return self._pin(earlier[-1], "rolled back", "rolled back by hand")

    def unpin(self) -> Event:
        """Let offers decide again. Raises StoreError when nothing is pinned."""
        with self._locked():
            if (digest := self.pinned()) is None:
                raise StoreError(f"{self.model!r} is not pinned")
            (self.folder / "PINNED").unlink()
            return self._record(Event(_now(), "unpinned", digest, "offers decide again"))

    def gc(self, keep: int = 5, older_than: float = DAY, dry_run: bool = False) -> list[Path]:
        """Remove versions and trials no one needs; returns what was removed, in a dry run what would be.

        Kept: CURRENT, what is pinned, the last `keep` promoted versions, trials that run, and all that is younger than
        `older_than` seconds. What a killed trial left is judged first, where CURRENT has the same data.
        """
        removed = []
        with self._locked():
            if not dry_run:
                self._adopt(None)
            promoted = [event.digest for event in self.history() if event.event in MADE_CURRENT]
            needed = {self.current(), self.pinned(), *list(dict.fromkeys(reversed(promoted)))[:keep]}
            idle = []
            for folder in self._trials():
                with contextlib.suppress(files.LockError), files.locked(folder / ".lock", wait=0):
                    idle.append(folder)
            unfinished = self.folder.glob("versions/.new-*")  # by a process that was killed
            for folder in [*(f for f in self.versions() if f.name not in needed), *idle, *unfinished]:
                if time.time() - folder.stat().st_mtime >= older_than:
                    removed.append(folder)
                    if not dry_run:
                        shutil.rmtree(folder)
        return removed

    # Inside the lock

    def _adopt(self, ground: Ground | None, offering: Path | None = None) -> list[Event]:
        """Judge what killed trials left; with data that neither CURRENT nor the offer has, it waits for one who has."""
        events, comparable = [], {ground and ground.data_digest}
        with contextlib.suppress(artifact.ArtifactError, StoreError):
            comparable.add(self.find().manifest.data_digest)
        for folder in self._trials():
            if (folder / OFFERED).exists() or folder.resolve() == offering:
                continue
            # The lock is free when the trial's process is gone; held meanwhile, a restarted one waits for it.
            with contextlib.suppress(files.LockError), files.locked(folder / ".lock", wait=0):
                with contextlib.suppress(artifact.ArtifactError):
                    if self.current() and artifact.read(folder)[0].data_digest not in comparable:
                        continue
                if not (folder / OFFERED).exists():
                    events.append(self._judge(folder, ground))
        return events

    def _judge(self, folder: Path, ground: Ground | None) -> Event:
        event = Event(_now(), "refused", "", "")
        try:
            manifest = artifact.load(folder).manifest
            self._decide(event, manifest, ground)
        except artifact.ArtifactError as error:
            event.reason = str(error)
        if event.event == "promoted":
            self._point("CURRENT", self._commit(folder, manifest))
        return self._close(folder, event)

    def _close(self, folder: Path, event: Event) -> Event:
        """Record the decision on a trial's model, and that it was made."""
        event.trial = f"{folder.parent.name}/{folder.name}"
        self._record(event)
        files.write(folder / OFFERED, msgspec.json.encode(event))
        return event

    def _decide(self, event: Event, challenger: artifact.Manifest, ground: Ground | None) -> None:
        """Fill in what becomes of a challenger, why, and the figures that decide."""
        event.digest, event.data_digest = challenger.digest, challenger.data_digest
        event.previous, event.accuracy = self.current(), challenger.metrics.validation.accuracy
        event.event, event.reason = self._verdict(event, challenger, ground)
        if event.current_learned:
            share = f"{event.current_learned:.0%}"
            event.reason += f"; the current model had learned from about {share} of the rows compared"

    def _verdict(self, event: Event, challenger: artifact.Manifest, ground: Ground | None) -> tuple[Decision, str]:
        gate = challenger.gate or Gate()
        if self.pinned():
            return "recorded", "a version is pinned; `unpin` lets offers decide again"
        if gate.policy == "manual":
            return "recorded", "the policy is manual; `promote` makes it current"
        if event.previous is None:
            return "promoted", "the first model"
        try:
            champion = self.load()
        except artifact.ArtifactError as error:
            return "promoted", f"the current version is broken: {error}"
        held = champion.manifest
        if (held.input.contract, held.classes) != (challenger.input.contract, challenger.classes):
            return "refused", "its input or classes differ from the current model's; `promote` it"
        if held.data_digest == challenger.data_digest:
            event.current_accuracy, outcomes = held.metrics.validation.accuracy, held.outcomes
        elif ground and ground.data_digest == challenger.data_digest:
            outcomes = ground.outcomes(champion)
            event.current_accuracy, event.current_learned = outcomes.accuracy, ground.seen(held)
        else:
            return "refused", "it was measured on other data than the current model; `promote` it"
        gain = challenger.metrics.validation.accuracy - event.current_accuracy
        if gain <= 0:
            return "kept", "the current model is still the best"
        if gain < gate.min_improvement - 1e-12:
            return "kept", "the gain is below the minimum"
        if challenger.experiment == held.experiment:
            return "promoted", "better than the search's best so far"
        event.p_value = challenger.outcomes.chance(outcomes)
        if event.p_value > gate.significance:
            return "kept", f"the gain may be luck (p = {event.p_value:.2g}, above {gate.significance:g})"
        return "promoted", f"better than the current model (p = {event.p_value:.2g})"

    def _commit(self, folder: Path, manifest: artifact.Manifest) -> str:
        """Copy a model into versions/, whole or not at all; a broken version of the same digest is replaced."""
        target = self.version(manifest.digest)
        with contextlib.suppress(artifact.ArtifactError):
            artifact.load(target, manifest.digest)
            return manifest.digest
        _, data = artifact.read(folder, manifest.digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        import tempfile

        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
            new = Path(scratch) / manifest.digest
            new.mkdir()
            artifact.save(new, data, msgspec.structs.replace(manifest, parent=self._previous()))
            if target.exists():
                shutil.rmtree(target)
            new.rename(target)
        files.sync_folder(target.parent)
        return manifest.digest

    def _pin(self, digest: str, event: Decision, reason: str) -> Event:
        previous = self._previous()
        self._point("PINNED", digest)
        self._point("CURRENT", digest)
        return self._record(Event(_now(), event, digest, reason, previous=previous))

    def _previous(self) -> str | None:
        """CURRENT before it is replaced; a damaged one is about to be mended."""
        with contextlib.suppress(StoreError):
            return self.current()
        return None

    def _point(self, name: str, digest: str) -> None:
        files.write(self.folder / name, f"{digest}\n".encode())

    def _record(self, event: Event) -> Event:
        with (self.folder / "history.jsonl").open("ab+") as file:
            file.seek(max(0, file.tell() - 1))
            torn = file.read() not in (b"", b"\n")
            file.write(b"\n" * torn + msgspec.json.encode(event) + b"\n")
        return event

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.locked(self.folder / ".lock"):
            yield

    def _trials(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob(f"trials/*/*/{artifact.MODEL_FILE}"))

    def _version(self, digest: str) -> Entry:
        folder = self.version(digest)
        return Entry(folder, artifact.read(folder, digest)[0])

    def versions(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("versions/*") if re.fullmatch(r"[0-9a-f]{64}", path.name))

    def _line(self, name: str) -> str | None:
        try:
            text = (self.folder / name).read_text().strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{self.folder / name} can't be read: {error}") from error
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise StoreError(f"{self.folder / name} is damaged: `promote DIGEST` writes it anew")
        return text

    def nothing(self) -> str:
        if self.folder.is_dir():
            return f"no model of {self.model!r} has been promoted yet in {self.root}: run its search first"
        there = sorted(path.name for path in self.root.glob("*") if (path / "CURRENT").exists())
        return f"no model {self.model!r} in {self.root} (there: {', '.join(there) or 'none'}): run its search first"


def explain(error: Exception, path: Path) -> str:
    """What to tell a person of an error met while writing to `path`."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk of {path}: free some (`gc` removes old models); nothing was lost"
    return f"can't write to {path}: {error.strerror}: check its owner and mode (uid and gid 1000 in a pod)"


def told(manifest: artifact.Manifest) -> dict[str, Any]:
    """A manifest as plain data, for people."""
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    for kept in ("outcomes", "learned"):  # of validation and training rows, for comparisons alone
        del plain[kept]
    return plain


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


# Command line: `python3 -m modelkit.store list --model iris`


def _list(store: Store, _: argparse.Namespace) -> Iterator[str]:
    marks = {store.current(): "current"} | {store.pinned(): "pinned"}
    rows = [("", "DIGEST", "ACCURACY", "TEST", "CREATED", "TRIAL")]
    if not (entries := store.entries()):
        raise StoreError(store.nothing())
    for entry in sorted(entries, key=lambda entry: entry.manifest.digest not in marks):
        m, scores = entry.manifest, entry.manifest.metrics
        mark = marks.get(m.digest, "version" if entry.folder.parent.name == "versions" else "trial")
        figures = (_four(scores.validation.accuracy), _four(scores.test.accuracy if scores.test else None))
        rows.append((mark, m.digest[:12], *figures, m.created[:19], m.trial.rpartition("-")[2]))
    return _table(rows)


def _show(store: Store, args: argparse.Namespace) -> Iterator[str]:
    yield json.dumps(told(store.find(args.of).manifest), indent=2)


def _lineage(store: Store, args: argparse.Namespace) -> Iterator[str]:
    for ancestor in store.lineage(args.of):
        if isinstance(ancestor, str):
            yield f"{ancestor[:12]}  is no longer in the store"
            break
        m = ancestor.manifest
        yield f"{m.digest[:12]}  accuracy {m.metrics.validation.accuracy:.4f}, made {m.created[:19]}"
        yield f"  trial       {m.experiment}/{m.trial}, epoch {m.epoch} of {m.epochs_run}, seed {m.seed}"
        yield f"  parameters  {', '.join(f'{name}={value}' for name, value in m.parameters.items())}"
        yield f"  data        {m.data_digest[:12]}, {m.metrics.validation.rows} validation rows"
        yield f"  image       {m.image or 'not told'}"


def _history(store: Store, _: argparse.Namespace) -> Iterator[str]:
    rows = [("TIME", "DECISION", "DIGEST", "ACCURACY", "AGAINST", "REASON")]
    for e in store.history():
        figures = (_four(e.accuracy), _four(e.current_accuracy))
        rows.append((e.time[:16], e.event, e.digest[:12] or str(e.trial), *figures, e.reason))
    return _table(rows)


def _four(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A line each; on a terminal, what is longer goes on below."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = shutil.get_terminal_size((sys.maxsize, 0)).columns
    for row in rows:
        yield from textwrap.wrap("  ".join(map(str.ljust, row, widths)), room, subsequent_indent=" " * 4)


def _verify(store: Store, _: argparse.Namespace) -> list[str]:
    count = len(store.versions())
    if problems := store.verify() or [store.nothing()] * (not count):
        raise StoreError("\n".join(problems))
    return [f"{files.count(count, 'version')} of {store.model}: all whole"]


def _gc(store: Store, args: argparse.Namespace) -> list[str]:
    removed = store.gc(args.keep, args.older_than * DAY, args.dry_run)
    done = "would remove" if args.dry_run else "removed"
    nothing = "nothing to remove: all is current, pinned, running, lately promoted (--keep) or young (--older-than)"
    return [f"{done} {path.relative_to(store.root)}" for path in removed] or [nothing]


def _rollback(store: Store, _: argparse.Namespace) -> list[str]:
    return [f"{store.rollback().digest[:12]} is current again, and pinned; `unpin` lets offers decide"]


def _said(event: Event) -> list[str]:
    return [f"{event.event} {event.digest[:12]}: {event.reason}"]


# What each takes, runs and does.
COMMANDS: dict[str, tuple[str, Callable[[Store, argparse.Namespace], Iterable[str]], str]] = {
    "list": ("", _list, "versions and trials' models: the current one, then newest first"),
    "show": ("[DIGEST]", _show, "a model's manifest"),
    "lineage": ("[DIGEST]", _lineage, "where a model comes from, back to the first ancestor"),
    "history": ("", _history, "every decision, oldest first; as JSON lines it is history.jsonl"),
    "offer": ("FOLDER", lambda s, a: _said(s.offer(Path(a.of))), "propose the model in a trial's folder"),
    "promote": ("DIGEST", lambda s, a: _said(s.promote(a.of)), "make a model current, and pin it"),
    "rollback": ("", _rollback, "go back to the version before the current one, and pin it"),
    "unpin": ("", lambda s, _: _said(s.unpin()), "let offers decide again"),
    "verify": ("", _verify, "check every version; exit status 1 if one is broken"),
    "gc": ("", _gc, "remove old versions and trials: never what is served, pinned or young"),
}


def main(argv: list[str], prog: str = "python3 -m modelkit.store", root: Path = Path("/model"), model: str = "") -> int:
    """The store's command line; `model` is the default. Returns the exit status: 1 for an error or a broken store."""
    example = f"Example: {prog} {{}} --model iris".format
    parser = argparse.ArgumentParser(prog=prog, description="Look after the models in a store.")
    parser.epilog = example("promote 3f2a")
    commands = parser.add_subparsers(metavar="ACTION", required=True)
    for name, (takes, run, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, epilog=example(f"{name} {takes}"))
        command.set_defaults(run=run)
        shown = " (default: %(default)s)" if model else ", for example iris"
        command.add_argument("--model", required=not model, default=model, help=f"the model's name{shown}")
        command.add_argument("--root", type=Path, default=root, help="the store's folder (default: %(default)s)")
        if takes:
            command.add_argument("of", nargs="?" if takes == "[DIGEST]" else None, metavar=takes.strip("[]"))
    gc = commands.choices["gc"].add_argument
    gc("--keep", type=int, default=5, help="promoted versions to keep (default: %(default)s)")
    gc("--older-than", type=float, default=1, metavar="DAYS", help="keep what is younger (1)")
    gc("--dry-run", action="store_true", help="only tell what would go")
    if argv and argv[0] not in COMMANDS and (near := difflib.get_close_matches(argv[0], COMMANDS)):
        parser.error(f"there is no action {argv[0]}: did you mean {near[0]}?")
    args = parser.parse_args(argv)
    try:
        store = Store(args.root, args.model)
        if argv[0] != "offer" and not store.folder.is_dir():  # only an offer begins a model
            raise StoreError(store.nothing())
        for line in args.run(store, args):
            print(line)
        return 0
    except (StoreError, artifact.ArtifactError, files.LockError, OSError) as error:
        print(f"error: {explain(error, args.root)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    sys.exit(main(sys.argv[1:]))
