"""The messages of sandhost.proto, as classes. messages.pyi has their names and fields.

Made here, of the description that protoc wrote, and not by generated code: that would be bound to the
releases of protobuf that its generator knows, and we run with whatever the application has installed.
"""

from importlib import resources

from google.protobuf import descriptor_pool, message_factory

_POOL = descriptor_pool.Default()
_POOL.AddSerializedFile(resources.files(__package__).joinpath("messages.binpb").read_bytes())
DESCRIPTOR = _POOL.FindFileByName("sandhost/v1/sandhost.proto")
globals().update(
    {
        name: message_factory.GetMessageClass(message)
        for name, message in DESCRIPTOR.message_types_by_name.items()
    }
)
