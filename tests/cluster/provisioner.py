"""Make volumes for claims, on the node's disk as MicroK8s does: provisioner.py KUBECONFIG FOLDER.

A claim of a class with `medium: Memory` gets a file system of just the size it asks for, which can be filled.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from kubernetes import client, config, watch
from kubernetes.utils import parse_quantity

PROVISIONER = "microk8s.io/hostpath"


def main(kubeconfig: str, folder: Path) -> None:
    config.load_kube_config(kubeconfig)
    core, storage = client.CoreV1Api(), client.StorageV1Api()
    for event in watch.Watch().stream(core.list_persistent_volume_claim_for_all_namespaces):
        claim = event["object"]
        annotations = claim.metadata.annotations or {}
        if annotations.get("volume.kubernetes.io/storage-provisioner") != PROVISIONER:
            continue  # another's, or still without a pod
        name = f"pvc-{claim.metadata.uid}"
        path = folder / name
        if event["type"] == "DELETED":
            core.delete_persistent_volume(name)
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False)
            shutil.rmtree(path)
        elif not claim.spec.volume_name and not path.exists():
            kind = storage.read_storage_class(claim.spec.storage_class_name)
            path.mkdir(parents=True)
            if (kind.parameters or {}).get("medium") == "Memory":
                size = int(parse_quantity(claim.spec.resources.requests["storage"]))
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
            path.chmod(0o777)
            core.create_persistent_volume(volume(name, path, claim))


def volume(name: str, path: Path, claim: client.V1PersistentVolumeClaim) -> client.V1PersistentVolume:
    """A volume in that folder, for that claim alone."""
    return client.V1PersistentVolume(
        metadata=client.V1ObjectMeta(name=name, annotations={"pv.kubernetes.io/provisioned-by": PROVISIONER}),
        spec=client.V1PersistentVolumeSpec(
            capacity=claim.spec.resources.requests,
            access_modes=claim.spec.access_modes,
            storage_class_name=claim.spec.storage_class_name,
            persistent_volume_reclaim_policy="Delete",
            host_path=client.V1HostPathVolumeSource(path=str(path), type="Directory"),
            claim_ref=client.V1ObjectReference(
                kind="PersistentVolumeClaim",
                namespace=claim.metadata.namespace,
                name=claim.metadata.name,
                uid=claim.metadata.uid,
            ),
        ),
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
