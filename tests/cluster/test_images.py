"""The images, as a registry would keep them."""

import os
import subprocess
import zlib

import pytest

import images

pytestmark = pytest.mark.skipif("NAS_TEST_KUBECONFIG" in os.environ, reason="images of that cluster are made elsewhere")


@pytest.mark.parametrize(("name", "most"), [("server", 120), ("tabular-trainer", 150)])
def test_an_image_has_at_most_so_many_megabytes_compressed(name: str, most: int) -> None:
    save = [*images.BUILDAH, "push", "--quiet", images.build(name), f"docker-archive:/dev/stdout:{name}"]
    size, packer = 0, zlib.compressobj()
    with subprocess.Popen(save, stdout=subprocess.PIPE) as archive:
        assert archive.stdout
        while part := archive.stdout.read(2**20):
            size += len(packer.compress(part))
    size += len(packer.flush())
    assert archive.returncode == 0
    print(f"image {name}: {size / 1e6:.0f} MB compressed")
    assert 30e6 < size <= most * 1e6
