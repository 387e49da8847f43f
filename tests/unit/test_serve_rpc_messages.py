"""What stands beside sandhost.proto is what protoc makes of it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from helpers import ROOT

from sandhost.serve.rpc import messages

FOLDER = ROOT / "sandhost/serve/rpc"


def test_the_description_is_that_of_the_proto_file(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    command = [sys.executable, "-m", "tools.messages", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=60)
    made, kept = (
        FileDescriptorProto.FromString((folder / "messages.binpb").read_bytes())
        for folder in (tmp_path, FOLDER)
    )
    assert kept == made


def test_the_types_are_those_of_the_messages() -> None:
    """By names and not letter by letter: how protoc writes them differs from release to release."""
    tree = ast.parse((FOLDER / "messages.pyi").read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    described = messages.DESCRIPTOR.message_types_by_name
    assert set(classes) == set(described) == {n for n in vars(messages) if n in described}
    for name, node in classes.items():
        fields = {
            item.target.id
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and item.target.id.islower()
        }
        assert fields == set(described[name].fields_by_name), name


def test_every_rpc_has_a_handler_of_its_kind() -> None:
    from sandhost.serve.rpc.doors import Doors
    from sandhost.serve.rpc.invoker import Invoker
    from sandhost.serve.rpc.plugins import Plugins

    class Nothing:
        service = registry = None

    doors = Doors(Nothing())  # type: ignore[arg-type]
    for name, door in (("Invoker", Invoker), ("Plugins", Plugins)):
        methods = messages.DESCRIPTOR.services_by_name[name].methods_by_name
        handlers = door(doors).handlers
        assert set(handlers) == set(methods)
        for method, handler in handlers.items():
            assert handler.response_streaming == bool(methods[method].server_streaming), method
