"""`python -m tools.messages [FOLDER]`: what sandhost.proto says, as Python reads it. Needs grpcio-tools.

sandhost.proto ─► messages.binpb   a FileDescriptorProto: messages.py makes its classes of it
               └► messages.pyi     the types of these classes
"""

import sys
import tempfile
from pathlib import Path

from .places import ROOT

__all__ = ["generate"]

_FOLDER = ROOT / "sandhost/serve/rpc"
_NAME = "sandhost/v1/sandhost.proto"
"""How the file is called among all that a process may load: its package, not where it lies here."""


def generate() -> tuple[bytes, str]:
    """Return what messages.binpb and messages.pyi have to be."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        arguments = [
            f"-I{Path(_NAME).parent}={_FOLDER}",
            f"--descriptor_set_out={out / 'set'}",
            f"--pyi_out={out}",
            _NAME,
        ]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit("protoc has refused it")
        (file,) = FileDescriptorSet.FromString((out / "set").read_bytes()).file
        (types,) = out.rglob("*.pyi")
        return file.SerializeToString(deterministic=True), types.read_text()


def main(folder: Path = _FOLDER) -> None:
    """Write both."""
    descriptor, types = generate()
    (folder / "messages.binpb").write_bytes(descriptor)
    (folder / "messages.pyi").write_text(types)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
