#!/usr/bin/env python3
"""Whole-process figures of operations on disks, against named peers in the same run.

    benches/disks.py [--write]      as root on Debian, with qemu-utils, cryptsetup-bin and libnbd-bin

Runs of all contestants of a case alternate; each figure is the median of five. `--write` puts the table into docs/performance.md.
"""

import os
import pathlib
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VMSEAL = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/vmseal"
GIB = 1 << 30
RUNS = 5
BEGIN, END = "<!-- disks: begin -->\n", "<!-- disks: end -->\n"


def run(*args, **options):
    return subprocess.run([str(arg) for arg in args], check=True, stdout=subprocess.DEVNULL, **options)


def timed(*args, **options):
    begin = time.perf_counter()
    run(*args, **options)
    return time.perf_counter() - begin


def alternate(contestants):
    """Seconds of each contestant: the median of its runs, which take turns."""
    seconds = {name: [] for name in contestants}
    for _ in range(RUNS):
        for name, contestant in contestants.items():
            seconds[name].append(contestant())
    return {name: statistics.median(values) for name, values in seconds.items()}


class Vm:
    """A VM with one flat disk of random data."""

    def __init__(self, folder, size=GIB):
        self.folder, self.home = folder / "vm", folder / "state"
        self.folder.mkdir(parents=True)
        self.vmx, self.disk, self.flat = self.folder / "web01.vmx", self.folder / "web01.vmdk", self.folder / "web01-flat.vmdk"
        run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", self.disk, str(size))
        run("dd", "if=/dev/urandom", f"of={self.flat}", "bs=1M", f"count={min(size, GIB) >> 20}", "conv=notrunc", stderr=subprocess.DEVNULL)
        self.vmx.write_text('displayName = "web01"\nscsi0:0.fileName = "web01.vmdk"\nscsi0:0.present = "TRUE"\n')
        self.vmseal("provider", "create", "native", "house")

    def command(self, *args):
        return [str(VMSEAL), "--home", str(self.home), "-q", *map(str, args)]

    def vmseal(self, *args):
        return timed(*self.command(*args), stderr=subprocess.DEVNULL)

    def deep(self, *args):
        return self.vmseal("recrypt", self.vmx, "--deep", "--strategy", "in-place", *args)


def reencrypt(folder):
    """Deep recrypts on tmpfs."""
    rows = []
    key, other = folder / "key", folder / "other"
    key.write_text("password")
    other.write_text("password")
    for sector in (512, 4096):
        vm = Vm(folder / f"vm-{sector}")
        vm.vmseal("encrypt", vm.vmx, "--provider", "house", "--data-unit", sector, "--strategy", "in-place")
        luks = folder / "disk.luks"
        with open(luks, "wb") as file:
            file.truncate(GIB + (32 << 20))
        quick = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, "--batch-mode", "--disable-locks"]
        run("cryptsetup", "luksFormat", "--type", "luks2", "--sector-size", sector, "--key-size", "512", "--offset", "65536", *quick, luks)

        def cryptsetup():
            return timed("cryptsetup", "reencrypt", "--resilience", "checksum", "--force-offline-reencrypt", *quick, luks,
                         stderr=subprocess.DEVNULL)

        contestants = {"vmseal": vm.deep, "cryptsetup": cryptsetup}
        if sector == 512:
            secret = ["--object", f"secret,id=a,file={key}"]
            run("qemu-img", "create", "-q", "-f", "luks", *secret, "-o", "key-secret=a,iter-time=10", folder / "a.luks", str(GIB))
            run("qemu-img", "convert", "-n", "-f", "raw", *secret, "--target-image-opts", vm.flat,
                f"driver=luks,key-secret=a,file.filename={folder / 'a.luks'}")

            def convert():
                return timed("qemu-img", "convert", *secret, "--image-opts", f"driver=luks,key-secret=a,file.filename={folder / 'a.luks'}",
                             "-O", "luks", "-o", "key-secret=a,iter-time=10", folder / "b.luks")

            contestants["qemu-img"] = convert
        figures = alternate(contestants)
        ours = figures["vmseal"]
        rows.append((f"deep recrypt in place, 1 GiB flat on tmpfs, {sector}-byte units", f"{GIB / ours / 1e9:.2f} GB/s",
                     f"{figures['cryptsetup'] / ours:.1f} x `cryptsetup reencrypt --resilience checksum`", "3 x"))
        if "qemu-img" in figures:
            rows.append(("", "", f"{figures['qemu-img'] / ours:.1f} x `qemu-img convert` LUKS to LUKS", "15 x"))
        shutil.rmtree(vm.folder.parent)
        luks.unlink()
    return rows


def on_disk(folder):
    vm = Vm(folder / "vm")
    vm.vmseal("encrypt", vm.vmx, "--provider", "house", "--strategy", "in-place")
    copy = folder / "copy"

    def dd():
        return timed("dd", f"if={vm.flat}", f"of={copy}", "bs=1M", "conv=fsync", stderr=subprocess.DEVNULL)

    figures = alternate({"vmseal": vm.deep, "dd": dd})
    return [("the same on the disk, 512-byte units", f"{GIB / figures['vmseal'] / 1e9:.2f} GB/s",
             f"{figures['dd'] / figures['vmseal']:.2f} x `dd bs=1M conv=fsync` of the file", "0.9 x")]


def serve(folder):
    vm = Vm(folder / "vm")
    vm.vmseal("encrypt", vm.vmx, "--provider", "house", "--strategy", "in-place")
    key, header = folder / "key", folder / "header.img"
    key.write_text("password")
    vm.vmseal("disk", "luks-header", vm.disk, "-o", header, "--password-file", key)
    raw = folder / "raw.img"
    vm.vmseal("disk", "export", vm.disk, "-o", raw)
    sockets = {name: folder / f"{name}.sock" for name in ("vmseal", "luks", "raw")}
    luks = f"driver=luks,key-secret=a,file.driver=file,file.filename={vm.flat},header.driver=file,header.filename={header}"
    common = ["qemu-nbd", "--persistent", "--read-only", "--shared=8"]
    servers = [
        subprocess.Popen(vm.command("serve", vm.disk, "--socket", sockets["vmseal"], "--read-only"), stderr=subprocess.DEVNULL),
        subprocess.Popen([*common, "-k", str(sockets["luks"]), "--object", f"secret,id=a,file={key}", "--image-opts", luks]),
        subprocess.Popen([*common, "-k", str(sockets["raw"]), "-f", "raw", str(raw)]),
    ]
    try:
        while not all(socket.exists() for socket in sockets.values()):
            time.sleep(0.05)
        time.sleep(0.3)

        def read(name):
            return lambda: timed("nbdcopy", "--request-size=1048576", f"nbd+unix:///?socket={sockets[name]}", "null:")

        figures = alternate({name: read(name) for name in sockets})
    finally:
        for server in servers:
            server.send_signal(signal.SIGTERM)
        for server in servers:
            server.wait()
    ours = figures["vmseal"]
    return [("serve, `nbdcopy` of 1 GiB in requests of 1 MiB, Unix socket", f"{GIB / ours / 1e9:.2f} GB/s",
             f"{figures['luks'] / ours:.2f} x `qemu-nbd`, the same bytes through its LUKS driver", "1.5 x"),
            ("", "", f"{figures['raw'] / ours:.2f} x `qemu-nbd`, the decrypted bytes raw", "0.7 x")]


def memory(folder):
    """Peak memory of a deep recrypt of a thin 15 TiB disk, beyond what the command needs to say its version."""

    def peak(*args):
        child = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        assert status == 0, args
        return usage.ru_maxrss << 10

    vm = Vm(folder / "vm", size=15 << 40)
    vm.vmseal("encrypt", vm.vmx, "--provider", "house", "--strategy", "in-place")
    alone = peak(str(VMSEAL), "--version")
    beyond = peak(*vm.command("recrypt", vm.vmx, "--deep", "--strategy", "in-place")) - alone
    return [("memory of a deep recrypt in place, a thin disk of 15 TiB with 1 GiB of data", f"{beyond >> 20} MiB",
             f"beyond the {alone >> 20} MiB of the binary alone", "at most 64 MiB")]


def main():
    run("cargo", "build", "--release", "--quiet", cwd=ROOT)
    shared = pathlib.Path("/dev/shm")
    rows = []
    for case, place in ((reencrypt, shared), (on_disk, ROOT / "target"), (serve, shared), (memory, ROOT / "target")):
        with tempfile.TemporaryDirectory(prefix="vmseal-bench-", dir=place) as folder:
            rows += case(pathlib.Path(folder))
    table = "| case | vmseal | ratio | goal |\n|---|---|---|---|\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    print(table)
    if "--write" in sys.argv[1:]:
        page = ROOT / "docs/performance.md"
        text = page.read_text()
        head, rest = text.split(BEGIN)
        _, tail = rest.split(END)
        page.write_text(head + BEGIN + table + END + tail)


main()
