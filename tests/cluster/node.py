"""A throw-away Kubernetes of one node, real in every part: etcd to kubelet, kube-proxy, CoreDNS, containerd.

    node.py up [NAME]       start it (root, Linux), print how to reach it, and leave it running
    node.py down [NAME]     stop it; --wipe removes its images too
    node.py build           only build its commands

Its commands are built once from Go's module proxy at the versions in commands/*/go.mod; containerd, runc and the CNI
plugins are Debian packages. They all run in process, mount and network namespaces of their own. When the first process
in there ends, in whatever way, the kernel ends every other and takes the mounts, interfaces, routes and packet filter
rules with it: nothing has to be undone, and nothing outside is ever changed. The network has no way out.
"""

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import io
import ipaddress
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
COMMANDS = HERE / "commands"
PACKAGES = {  # Debian's, by a file that tells whether one is there
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "iptables": "/usr/sbin/iptables",
    "iproute2": "/usr/sbin/ip",
    "openssl": "/usr/bin/openssl",
    "catatonit": "/usr/bin/catatonit",
}
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nas-cluster"
CLUSTER_DOMAIN = "cluster.local"
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
API_ADDRESS, DNS_ADDRESS = "10.96.0.1", "10.96.0.10"  # as services
LINKS = ipaddress.ip_network("10.245.0.0/16")  # four addresses for each node's link with the machine
PAUSE_IMAGE = "nas.test/pause:1"
START_LIMIT = 120.0  # seconds for any one part
PR_SET_PDEATHSIG = 1
# What kubelet would set for the whole machine; inside it sees files of its own instead.
SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


class NodeError(Exception):
    """What is wrong, and what to do about it."""


# Its commands


def commands() -> Path:
    """The folder with the built commands, for what commands/*/go.mod say now."""
    recipe = b"".join(path.read_bytes() for path in sorted(COMMANDS.glob("*/go.mod")))
    return CACHE / f"commands-{hashlib.sha256(recipe).hexdigest()[:12]}"


def build() -> Path:
    """Install Debian's packages and build the commands, where they aren't there. Raises NodeError."""
    install(PACKAGES)
    folder = commands()
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        if not shutil.which("go"):
            raise NodeError("Kubernetes is built from source and there is no go on PATH: install Go 1.24 or newer")
        scratch = CACHE / "build"
        shutil.rmtree(scratch, ignore_errors=True)
        for module in ("etcd", "coredns", "kubernetes"):
            with stage(f"building {module}"):
                flags = f"-s -w {_version_flags() if module == 'kubernetes' else ''}"
                run(
                    ["go", "build", "-trimpath", "-ldflags", flags, "-o", f"{scratch}/", "tool"],
                    cwd=COMMANDS / module,
                    env={"CGO_ENABLED": "0"},
                )
        (scratch / "server").rename(scratch / "etcd")
        scratch.rename(folder)
    return folder


def install(packages: dict[str, str]) -> None:
    """Install Debian's packages, given by a file of theirs, where they aren't there. Raises NodeError."""
    missing = [package for package, path in packages.items() if not Path(path).exists()]
    if missing:
        with stage(f"installing {' '.join(missing)}"):
            run(["apt-get", "-qq", "update"])
            words = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]
            run(words, env={"DEBIAN_FRONTEND": "noninteractive"})


def _version_flags() -> str:
    """What makes the commands say their version, as Kubernetes' own build does."""
    text = (COMMANDS / "kubernetes/go.mod").read_text()
    version = text.split("\tk8s.io/kubernetes v", 1)[1].split()[0]
    major, minor, _ = version.split(".")
    package = "k8s.io/component-base/version"
    return f"-X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"


# The node, seen from outside


class Node:
    """One node by name. Several can run side by side; each keeps its images in a folder of its own."""

    def __init__(self, name: str = "default") -> None:
        self.name = name
        self.folder = CACHE / "nodes" / name
        self.kubeconfig = self.folder / "kubeconfig"  # of an administrator
        self.containerd = self.folder / "containerd.sock"
        self.logs = self.folder / "log"
        self.bin = commands()

    @property
    def running(self) -> bool:
        """Its first process holds a lock as long as it lives."""
        with self._lock() as lock:
            return not _locked(lock)

    def up(self, *, stay: bool) -> None:
        """Start it unless it runs. `stay`: it outlives this process, else it ends with it. Raises NodeError."""
        if os.geteuid() != 0:
            raise NodeError("a node needs root, for its namespaces: call this with sudo")
        build()
        with self._lock() as lock:
            if not _locked(lock):
                return
            self._sweep()
            process = self._spawn(lock, stay)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdout.readline()  # it is in namespaces of its own
            with process.stdin as orders:
                orders.write(f"{self._link(process.pid)}\n")
            for line in process.stdout:
                if line == "ready\n":
                    return
                print(line, end="", flush=True)
        except BaseException:
            self.down()
            raise
        raise NodeError(f"the node {self.name} didn't start: see {self.logs}")

    def down(self, *, wipe: bool = False) -> None:
        """Stop it if it runs, and remove what it leaves: cgroups, and all of its folder but images and logs."""
        with self._lock() as lock:
            self._kill(alive=not _locked(lock))
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._sweep()
            if wipe:
                shutil.rmtree(self.folder)

    def _kill(self, alive: bool) -> None:
        """End its first process, with it all others, and wait until they and the link are gone."""
        if not (record := self.folder / "running").exists():
            return
        pid, namespace, link = record.read_text().split()
        if alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        while _processes(namespace):
            time.sleep(0.02)
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[IO[str]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".lock").open("w") as lock:
            yield lock

    def _spawn(self, lock: IO[str], stay: bool) -> "subprocess.Popen[str]":
        """The first process, which gets the lock; `unshare` around it ends it when it ends itself."""
        self.logs.mkdir(exist_ok=True)
        parent = os.getpid()

        def end_with_parent() -> None:
            if not stay:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != parent:
                    os.kill(os.getpid(), signal.SIGKILL)

        namespaces = ["--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc"]
        with (self.logs / "node.log").open("w") as log:
            return subprocess.Popen(
                ["unshare", *namespaces, sys.executable, "-u", __file__, "init", self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                pass_fds=[lock.fileno()],
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def _link(self, pid: int) -> str:
        """Connect the machine with the network namespace of a process: the node's address. Ends with the namespace."""
        for index, network in enumerate(LINKS.subnets(new_prefix=30)):
            interface, (ours, theirs) = f"nas{index}", network.hosts()
            words = f"ip link add {interface} type veth peer name eth0 netns {pid}".split()
            if subprocess.run(words, capture_output=True, check=False).returncode == 0:
                namespace = Path(f"/proc/{pid}/ns/pid_for_children").readlink()
                (self.folder / "running").write_text(f"{pid} {namespace} {interface}")
                run(f"ip address add {ours}/30 dev {interface}".split())
                run(f"ip link set {interface} up".split())
                return str(theirs)
        raise NodeError(f"no free link in {LINKS}")

    def _sweep(self) -> None:
        for group in self.groups():
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        for path in self.folder.glob("*"):
            if path.name not in ("containerd", "log"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def groups(self) -> list[Path]:
        """The cgroup of its pods: one with cgroup v2, with v1 one in each hierarchy."""
        root = Path("/sys/fs/cgroup")
        hierarchies = [root] if (root / "cgroup.controllers").exists() else root.iterdir()
        return [hierarchy / f"nas-{self.name}" for hierarchy in hierarchies if not hierarchy.is_symlink()]


def _processes(namespace: str) -> list[Path]:
    """Those alive in a process namespace."""
    found = []
    for link in Path("/proc").glob("[0-9]*/ns/pid"):
        with contextlib.suppress(OSError):
            if str(link.readlink()) == namespace:
                found.append(link)
    return found


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# The node, seen from inside: the first process starts the parts and waits


class Parts:
    """The node's parts, in the order in which they start."""

    def __init__(self, node: Node, address: str) -> None:
        self._node, self._address = node, address
        self._folder = Path("/run/node")  # the node's own, by a path that is short and the same for all
        self._api = f"https://{address}:6443"
        self._children: dict[int, str] = {}

    def start(self) -> None:
        with stage("namespaces"):
            self._mounts()
            self._network()
            self._certificates()
        with stage("containerd"):
            self._containerd()
        with stage("etcd and kube-apiserver"):
            self._control_plane()
        with stage("kubelet, kube-proxy, CoreDNS"):
            self._node_agents()

    def wait(self) -> None:
        """Reap what ends in here, until one of the parts does."""
        while True:
            pid, status = os.wait()
            if name := self._children.get(pid):
                print(f"{name} ended with status {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
                return

    def _mounts(self) -> None:
        """A /run of its own, and a /var and sysctls that can be written without the machine noticing."""
        inside, outside = self._folder, self._node.folder
        keep = os.open(outside, os.O_PATH)
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
        inside.mkdir()
        run(["mount", "--bind", f"/proc/self/fd/{keep}", str(inside)], pass_fds=[keep])
        for name in ("var", "var-work", "volumes"):
            (inside / name).mkdir()
        layers = f"lowerdir=/var,upperdir={inside}/var,workdir={inside}/var-work"
        run(["mount", "-t", "overlay", "-o", layers, "overlay", "/var"])
        for name, value in SYSCTLS.items():
            file = Path("/run/sysctl") / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value)
            run(["mount", "--bind", str(file), f"/proc/sys/{name}"])
        for group in self._node.groups():
            group.mkdir(exist_ok=True)
        # cgroup v1: a new cpuset has no processors until it is told
        for name in ("cpus", "mems"):
            file = Path(f"/sys/fs/cgroup/cpuset/nas-{self._node.name}/cpuset.{name}")
            if file.exists():
                file.write_text((file.parent.parent / file.name).read_text())

    def _network(self) -> None:
        run(["ip", "link", "set", "lo", "up"])
        run(f"ip address add {self._address}/30 dev eth0".split())
        run(["ip", "link", "set", "eth0", "up"])
        run(f"ip route add {SERVICE_NETWORK} dev eth0 src {self._address}".split())  # kube-proxy turns them elsewhere
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._write(
            "cni/10-node.conflist",
            f"""\
{{"cniVersion": "1.0.0", "name": "node", "plugins": [
  {{"type": "ptp", "ipam": {{
    "type": "host-local", "ranges": [[{{"subnet": "{POD_NETWORK}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
]}}
""",
        )

    def _certificates(self) -> None:
        """An authority, the API server's certificate, an administrator's, and the key of service accounts' tokens."""
        pki = self._folder / "pki"
        pki.mkdir()
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365"]
        names = f"DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:{API_ADDRESS},IP:{self._address}"
        authority = ["-CA", f"{pki}/ca.crt", "-CAkey", f"{pki}/ca.key"]
        for name, subject, words in (
            ("ca", "/CN=nas-test", []),
            ("server", "/CN=kube-apiserver", [*authority, "-addext", f"subjectAltName={names}"]),
            ("admin", "/O=system:masters/CN=admin", [*authority, "-addext", "extendedKeyUsage=clientAuth"]),
        ):
            files = ["-keyout", f"{pki}/{name}.key", "-out", f"{pki}/{name}.crt"]
            run(["openssl", "req", "-x509", *new_key, "-subj", subject, *files, *words])
        run(["openssl", "genrsa", "-out", f"{pki}/tokens.key", "2048"])
        kubectl = [str(self._node.bin / "kubectl"), "config", "--kubeconfig", str(self._folder / "kubeconfig")]
        ca, crt, key = (
            f"--{o}={pki / f}"
            for o, f in (
                ("certificate-authority", "ca.crt"),
                ("client-certificate", "admin.crt"),
                ("client-key", "admin.key"),
            )
        )
        run([*kubectl, "set-cluster", "node", f"--server={self._api}", ca, "--embed-certs"])
        run([*kubectl, "set-credentials", "admin", crt, key, "--embed-certs"])
        run([*kubectl, "set-context", "node", "--cluster=node", "--user=admin"])
        run([*kubectl, "use-context", "node"])

    def _containerd(self) -> None:
        config = self._write(
            "containerd.toml",
            f"""\
version = 2
root = "{self._folder}/containerd"
state = "/run/containerd"
[grpc]
  address = "{self._folder}/containerd.sock"
[ttrpc]
  address = "/run/containerd/ttrpc.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true  # root without CAP_SYS_RESOURCE can't lower a score
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self._folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""",
        )
        self._spawn("containerd", "containerd", "--config", config)
        ctr = ["ctr", "--address", f"{self._folder}/containerd.sock", "--namespace", "k8s.io"]
        self._await("containerd", lambda: run([*ctr, "version"]))
        if PAUSE_IMAGE not in run([*ctr, "images", "list", "--quiet"]).split():
            archive = self._folder / "pause.tar"
            _write_pause_image(PACKAGES["catatonit"], archive, PAUSE_IMAGE)
            run([*ctr, "images", "import", str(archive)])

    def _control_plane(self) -> None:
        folder, pki, admin = self._folder, self._folder / "pki", self._folder / "kubeconfig"
        self._spawn(
            "etcd",
            "etcd",
            f"--data-dir={folder}/etcd",
            "--unsafe-no-fsync",  # nothing in it is to survive
            "--log-level=warn",
        )
        self._spawn(
            "kube-apiserver",
            "kube-apiserver",
            f"--advertise-address={self._address}",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--authorization-mode=RBAC",
            "--allow-privileged",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/server.crt",
            f"--tls-private-key-file={pki}/server.key",
            f"--kubelet-client-certificate={pki}/admin.crt",
            f"--kubelet-client-key={pki}/admin.key",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={pki}/tokens.key",
            f"--service-account-signing-key-file={pki}/tokens.key",
        )
        self._await("kube-apiserver", lambda: self._kubectl("get", "--raw", "/readyz"))
        self._spawn(
            "kube-controller-manager",
            "kube-controller-manager",
            f"--kubeconfig={admin}",
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={pki}/tokens.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
        )
        self._spawn("kube-scheduler", "kube-scheduler", f"--kubeconfig={admin}", "--leader-elect=false")
        for manifest in ("node.yaml", "katib.yaml"):
            text = (HERE / "manifests" / manifest).read_text().replace("NODE_ADDRESS", self._address)
            self._kubectl("apply", "--server-side", "-f", self._write(manifest, text))
        self._spawn("provisioner", sys.executable, str(HERE / "provisioner.py"), str(admin), f"{folder}/volumes")
        self._spawn("katib", sys.executable, str(HERE / "katib_standin.py"), str(admin))

    def _node_agents(self) -> None:
        folder, admin = self._folder, self._folder / "kubeconfig"
        kubelet = self._write(
            "kubelet.yaml",
            f"""\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, x509: {{clientCAFile: {folder}/pki/ca.crt}}}}
cgroupDriver: cgroupfs
cgroupRoot: /nas-{self._node.name}
failCgroupV1: false
failSwapOn: false
clusterDomain: {CLUSTER_DOMAIN}
clusterDNS: [{DNS_ADDRESS}]
resolvConf: {self._write("resolv.conf", f"nameserver {self._address}")}
containerRuntimeEndpoint: unix://{folder}/containerd.sock
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 200Mi, nodefs.available: 1%, imagefs.available: 1%}}
syncFrequency: 5s
""",
        )
        proxy = self._write(
            "kube-proxy.yaml",
            f"""\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: {admin}}}
mode: iptables
clusterCIDR: {POD_NETWORK}
hostnameOverride: {self._node.name}
conntrack: {{maxPerCore: 0, min: 0}}
""",
        )
        dns = self._write(
            "Corefile",
            f"""\
.:53 {{
  bind {self._address}
  errors
  ready 127.0.0.1:8181
  kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
    kubeconfig {admin}
    ttl 5
  }}
}}
""",
        )
        self._spawn(
            "kubelet",
            "kubelet",
            f"--config={kubelet}",
            f"--kubeconfig={admin}",
            f"--hostname-override={self._node.name}",
            f"--node-ip={self._address}",
        )
        self._spawn("kube-proxy", "kube-proxy", f"--config={proxy}")
        self._spawn("coredns", "coredns", "-conf", dns)
        ready = "--for=condition=Ready"
        self._await("kubelet", lambda: self._kubectl("wait", ready, f"node/{self._node.name}", "--timeout=60s"))
        self._await("kube-proxy", lambda: urllib.request.urlopen("http://127.0.0.1:10256/healthz").close())
        self._await("CoreDNS", lambda: urllib.request.urlopen("http://127.0.0.1:8181/ready").close())
        self._await("controllers", lambda: self._kubectl("get", "serviceaccount", "default"))
        self._await("Katib's stand-in", lambda: self._kubectl("get", "mutatingwebhookconfiguration", "kubeflow.org"))

    def _write(self, name: str, text: str) -> str:
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    def _spawn(self, name: str, *words: str) -> None:
        with (self._folder / "log" / f"{name}.log").open("w") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        self._children[process.pid] = name

    def _await(self, name: str, check: Callable[[], Any]) -> None:
        """Try until the check raises nothing. Raises NodeError when it takes too long, or a part has ended."""
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                check()
                return
            except (NodeError, OSError) as error:
                if time.monotonic() > deadline:
                    raise NodeError(f"{name} isn't ready after {START_LIMIT:.0f} s: {error}") from error
            for pid, part in self._children.items():
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    raise NodeError(f"{part} ended: see its log")
            time.sleep(0.1)

    def _kubectl(self, *words: str) -> str:
        return run([str(self._node.bin / "kubectl"), "--kubeconfig", str(self._folder / "kubeconfig"), *words])


def init(name: str) -> None:
    """The life of the first process in the node's namespaces. Its parent writes the address and reads how it goes."""
    node = Node(name)
    os.environ["PATH"] = f"{node.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    for key in [key for key in os.environ if key.lower().endswith("_proxy")]:
        del os.environ[key]
    print("hello")
    address = sys.stdin.readline().strip()
    if not address:
        sys.exit("the starting process is gone")
    parts = Parts(node, address)
    try:
        parts.start()
    except NodeError as error:
        print(f"error: {error}")
        sys.exit(1)
    print("ready")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    parts.wait()


# Small things


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long something took."""
    start = time.monotonic()
    yield
    print(f"{name:.<40} {time.monotonic() - start:6.1f} s", flush=True)


def run(words: list[str], env: dict[str, str] | None = None, **more: Any) -> str:
    """What a command prints. Raises NodeError with what it says when it fails."""
    result = subprocess.run(
        words, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False, **more
    )
    if result.returncode:
        raise NodeError(f"{' '.join(words)}: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout


def _write_pause_image(program: str, archive: Path, name: str) -> None:
    """An image, as `docker save` writes one, of the static program that holds a pod's namespaces."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(program, "pause")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause", "-P"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        for path, data in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["up", "down", "build", "init"])
    parser.add_argument("name", nargs="?", default="default")
    parser.add_argument("--wipe", action="store_true", help="remove its images too")
    args = parser.parse_args()
    node = Node(args.name)
    try:
        if args.action == "build":
            print(build())
        elif args.action == "init":
            init(args.name)
        elif args.action == "down":
            node.down(wipe=args.wipe)
        else:
            node.up(stay=True)
            print(f"export KUBECONFIG={node.kubeconfig}\ncontainerd: {node.containerd}, namespace k8s.io")
    except NodeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
