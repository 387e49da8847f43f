"""A virtual machine of Debian's that was set up as docs/deploying.md says, for tests of deploy/.

    packages ──mmdebstrap──► root ──docs/deploying.md, podman build──► disk ──qemu──► Machine ◄── orders of a test
             kept                        made anew with the sources

image.py makes the disk, here and with the network; machine.py boots it, without one; what is in inside/ runs there.
"""
