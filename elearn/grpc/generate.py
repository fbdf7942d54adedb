"""Generates the messages of this folder again: ``python elearn/grpc/generate.py [--check]``.

Needs ``grpcio-tools``, a development dependency; the results are committed, so that users need none.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent


def generate(target: Path) -> list[Path]:
    """Writes the generated modules below ``target``; answers their paths relative to it."""
    protos = sorted(str(path.relative_to(_ROOT)) for path in _HERE.glob("*.proto"))
    # In a process of its own: the compiler inside one that has loaded TensorFlow crashes it.
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I."]
    subprocess.run([*command, f"--python_out={target}", f"--pyi_out={target}", *protos], cwd=_ROOT, check=True)
    return sorted(path.relative_to(target) for path in target.glob("elearn/grpc/*_pb2.py*"))


def drifted() -> list[str]:
    """The committed modules that differ from what the .proto files give now."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        return [
            str(path)
            for path in generate(target)
            if not (_ROOT / path).is_file() or (_ROOT / path).read_text() != (target / path).read_text()
        ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="elearn/grpc/generate.py")
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something would")
    if not parser.parse_args().check:
        generate(_ROOT)
        return 0
    stale = drifted()
    if stale:
        sys.stderr.write(f"generated files are stale: {', '.join(stale)}; run python elearn/grpc/generate.py\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
