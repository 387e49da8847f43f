"""Runs what the test outside orders; a line of JSON each way, by a port between the machines (machine.py)."""

import glob
import json
import subprocess

with open(glob.glob("/dev/vport*p*")[0], "r+b", buffering=0) as port:
    port.write(b"ready\n")
    for line in iter(port.readline, b""):
        done = subprocess.run(
            ["sh", "-c", json.loads(line)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        port.write(json.dumps([done.returncode, done.stdout]).encode() + b"\n")
