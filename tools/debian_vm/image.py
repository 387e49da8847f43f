"""The disk: Debian, the service as docs/deploying.md installs it, and the image that the Containerfile builds.

All is made in a folder, by commands in a chroot, since the machine itself is emulated and slow. That wants root, and
leaves nothing outside the cache: mounts are those of a namespace that ends with the command.
"""

import os
import re
import resource
import shutil
from pathlib import Path

from ..debian import unpacked
from ..install import digest, package_sources
from ..places import CACHE, ROOT
from ..processes import Failed, alone, quietly

FOLDER = CACHE / "debian-vm"
INSIDE = Path(__file__).with_name("inside")
SUITE = "trixie"
"""Debian 13, as in the Containerfile."""
PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "systemd-sysv", "dbus", "ca-certificates"),
    *("gcc", "libc6-dev", "make", "python3-dev", "python3-venv"),  # as in the Containerfile
    *("podman", "podman-compose", "crun", "netavark", "aardvark-dns", "nftables"),
)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
CLONE = "srv/sandhost"
CLONED = (
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
    "sandhost",
    "native",
    "guests/built",
    "deploy",
)
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Whom this machine trusts, the new one does too: a proxy between it and the package index may have its own."""
SIZE = "4G"
PROXIES = ("http_proxy", "https_proxy", "no_proxy")


def missing() -> str:
    """Return what keeps this machine from making the disk, or ""."""
    if os.geteuid() != 0:
        return "only root can make a folder of Debian's and a disk of it"
    wanted = ("apt-get", "dpkg-deb", "perl", "tar", "unshare", "chroot", "mke2fs")
    lacking = [name for name in wanted if shutil.which(name) is None]
    return f"there is no {' and no '.join(lacking)} here" if lacking else ""


def disk() -> Path:
    """Return the folder with the machine's `disk`, `vmlinuz` and `initrd.img`."""
    if reason := missing():
        raise Failed(reason)
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    files += [*package_sources(), *INSIDE.iterdir(), ROOT / "docs/deploying.md", Path(__file__)]
    state = digest(*sorted(files))
    folder, work = FOLDER / "disk", FOLDER / "work"
    with alone("debian-vm"):
        if (folder / "state").is_file() and (folder / "state").read_text() == state:
            return folder
        for old in (folder, work):
            shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True)
        quietly("copy Debian", ["cp", "-a", root(), work])
        install_service(work)
        build_image(work)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copy(next((work / "boot").glob(f"{name}-*")), folder / name)
        quietly("make its disk", ["mke2fs", "-q", "-t", "ext4", "-d", work, folder / "disk", SIZE])
        shutil.rmtree(work)
        (folder / "state").write_text(state)
    return folder


def root() -> Path:
    """Return the folder of a Debian with PACKAGES, which is kept as long as that list."""
    folder = FOLDER / f"root-{digest(SUITE, PACKAGES, LEFT_OUT)}"
    if not folder.is_dir():
        for old in FOLDER.glob("root-*"):
            shutil.rmtree(old)
        making = FOLDER / "root.making"
        shutil.rmtree(making, ignore_errors=True)
        without = [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
        bootstrap("apt", making, f"--include={','.join(PACKAGES)}", *without)
        making.rename(folder)
    return folder


def bootstrap(variant: str, target: Path, *options: str) -> None:
    """Make a folder, or a tar file, of Debian's packages."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    tool = unpacked("mmdebstrap") / "usr/bin"
    trusted = []
    if AUTHORITIES.is_file():
        place = "/usr/local/share/ca-certificates"
        hooks = [f'mkdir -p "$1{place}"', f"upload {AUTHORITIES} {place}/builder.crt"]
        trusted = [f"--customize-hook={hook}" for hook in hooks]
    command = [tool / "mmdebstrap", "--quiet", "--mode=root", f"--variant={variant}"]
    command += [*options, *trusted, SUITE, target]
    path = f"{tool}:/usr/sbin:{os.environ['PATH']}"
    quietly(f"make {target.name} of Debian's packages", command, env={"PATH": path})


def install_service(work: Path) -> None:
    """Put a clone into the folder, and do there what docs/deploying.md says."""
    (work / CLONE).mkdir()
    quietly("copy the clone", ["cp", "-a", "--parents", *CLONED, work / CLONE])
    shutil.copytree(INSIDE, work / "srv/inside")
    shutil.copy("/etc/resolv.conf", work / "etc/resolv.conf")
    text = (ROOT / "docs/deploying.md").read_text()
    tokens, install = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    inside(work, "trust whom this machine trusts", "update-ca-certificates")
    inside(work, "make tokens", tokens)
    # Nothing runs in the folder: what is enabled starts with the machine.
    inside(work, "install the service", install.replace("enable --now", "enable"))
    inside(work, "have orders taken", "systemctl enable /srv/inside/orders.service")


def build_image(work: Path) -> None:
    """Build the Containerfile with podman, into the store that podman has in the folder."""
    # No registry of images is asked: what the file begins with is made here, of the same packages.
    containerfile = (ROOT / "deploy/container/Containerfile").read_text()
    name = re.findall(r"^ARG BASE=(\S+)$", containerfile, re.MULTILINE)[0]
    base = FOLDER / "base.tar"
    base.unlink(missing_ok=True)
    bootstrap("minbase", base)
    base.rename(work / "srv/base.tar")
    inside(work, "import the base", f"podman import /srv/base.tar {name} && rm /srv/base.tar")
    build = "podman build --format=docker --isolation=chroot --pull=never --layers=false"
    for limit in ("nofile", "nproc"):  # by default more than a root without CAP_SYS_RESOURCE may
        allowed = resource.getrlimit(getattr(resource, f"RLIMIT_{limit.upper()}"))[1]
        build += f" --ulimit {limit}={allowed}:{allowed}"
    inside(work, "build the image", f"{build} -f deploy/container/Containerfile -t sandhost .")


def inside(work: Path, title: str, script: str) -> None:
    """Run a script in the folder's clone, as its root, with processes and mounts of its own."""
    enter = """
        mount --bind "$0" "$0" && cd "$0"
        mount -t proc proc proc && mount --rbind /sys sys && mount -t tmpfs tmpfs run
        exec chroot . sh -euc "cd /$1; $2"
    """
    clean = {name: value for name, value in os.environ.items() if name.lower() in PROXIES}
    clean |= {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
    words = [f"{name}={value}" for name, value in {**clean, "SYSTEMD_OFFLINE": "1"}.items()]
    apart = ["unshare", "--mount", "--pid", "--fork", "sh", "-euc", enter, work, CLONE, script]
    quietly(title, ["env", "-i", *words, *apart])
