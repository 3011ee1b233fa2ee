"""Lays the vectors of crates/formats into fuzz/corpus, as the seeds of each target."""

import hashlib
import json
import pathlib
import shutil

fuzz = pathlib.Path(__file__).resolve().parent
vectors = fuzz.parent / "crates/formats/tests/vectors"

FILES = {
    "descriptor": ["vmdk/*/*.vmdk"],
    "dictionary": ["vmx/*.vmx", "envelope/*.info", "vmdk/*/*.vmsd"],
    "encobj": ["encobj/*.nvram", "encobj/*.vms?", "encobj/*.vmem"],
    "envelope": ["envelope/*.ve"],
    "keysafe_open": ["vmx/*.vmx"],
    "locator": [],
    "luks": [],
    "nbd_server": [],
    "sesparse": [],
    "sparse_header": ["vmdk/*/*.vmdk"],
    "vmem_expand": [],
    "vmsd": ["vmdk/*/*.vmsd"],
    "xts_differential": [],
}


def sesparse() -> bytes:
    """The headers of a small SESparse extent; no file of that type may be published."""
    words = [0xCAFEBABE, 0x200000001, 40000, 8, 64, 0, 0, 0, 0, 0]
    for area in [(1, 1), (2, 2), (0x800, 0x800), (0x1000, 0x800), (0x1800, 640), (0, 0), (0, 0), (0x2000, 8000)]:
        words += area
    words += [0] * (64 - len(words)) + [0xCAFECAFE, 1, 1, 0]
    words += [0] * (128 - len(words)) + [0x1000000000000001, 0x3005000000000000, 0x2000000000000000]
    return b"".join(word.to_bytes(8, "little") for word in words)


def block(expanded: int, stream: bytes) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in (expanded, 0, len(stream), 0)) + stream


def luks1() -> bytes:
    """A LUKS1 header with one slot in use."""
    names = b"".join(name.ljust(32, b"\0") for name in (b"aes", b"xts-plain64", b"sha256"))
    header = b"LUKS\xba\xbe\0\x01" + names + (4096).to_bytes(4, "big") + (64).to_bytes(4, "big") + bytes(52)
    header += (1000).to_bytes(4, "big") + b"00000000-0000-4000-8000-000000000000".ljust(40, b"\0")
    for slot in range(8):
        state = 0x00AC71F3 if slot == 0 else 0x0000DEAD
        fields = (8 + 504 * slot, 4000)
        header += state.to_bytes(4, "big") + (1000).to_bytes(4, "big") + bytes(32)
        header += b"".join(field.to_bytes(4, "big") for field in fields)
    return header


def luks2_json() -> bytes:
    """The metadata of a LUKS2 header of 16 KiB a copy."""
    kdf = {"type": "argon2id", "time": 4, "memory": 64, "cpus": 1, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}
    area = {"type": "raw", "offset": "32768", "size": "258048", "encryption": "aes-xts-plain64", "key_size": 64}
    af = {"type": "luks1", "stripes": 4000, "hash": "sha256"}
    segment = {"type": "crypt", "offset": "0", "size": "dynamic", "iv_tweak": "0", "encryption": "aes-xts-plain64", "sector_size": 512}
    digest = {"type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256", "iterations": 1000, "salt": "AAAA", "digest": "A" * 43 + "="}
    metadata = {
        "keyslots": {"0": {"type": "luks2", "key_size": 64, "af": af, "area": area, "kdf": kdf}},
        "tokens": {},
        "segments": {"0": segment},
        "digests": {"0": digest},
        "config": {"json_size": "12288", "keyslots_size": "2064384"},
    }
    return json.dumps(metadata).encode()


def luks2() -> bytes:
    """A whole LUKS2 header: both copies, with their checksums."""
    copies = b""
    for offset, magic in ((0, b"LUKS"), (16384, b"SKUL")):
        head = magic + b"\xba\xbe\0\x02" + (16384).to_bytes(8, "big") + (1).to_bytes(8, "big")
        copy = bytearray(head.ljust(16384, b"\0"))
        copy[72:78] = b"sha256"
        copy[256:264] = offset.to_bytes(8, "big")
        text = luks2_json()
        copy[4096 : 4096 + len(text)] = text
        copy[448:480] = hashlib.sha256(copy).digest()
        copies += copy
    return copies


def nbd_option(option: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + option.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


def nbd_request(flags: int, command: int, offset: int, length: int, data: bytes = b"") -> bytes:
    fields = [(0x25609513, 4), (flags, 2), (command, 2), (7, 8), (offset, 8), (length, 4)]
    return b"".join(number.to_bytes(size, "big") for number, size in fields) + data


def nbd_clients() -> list[bytes]:
    """A first byte for the target, the client's flags, options, requests."""
    meta = b"\0\0\0\0" + (1).to_bytes(4, "big") + (15).to_bytes(4, "big") + b"base:allocation"
    structured = nbd_option(8) + nbd_option(9, meta) + nbd_option(10, meta)
    go = nbd_option(7, b"\0\0\0\4disk\0\2\0\1\0\3")
    write = nbd_request(1, 1, 4000, 600, bytes(range(200)) * 3)
    zero = nbd_request(0, 6, 0, 4096) + nbd_request(16, 6, 512, 99999) + nbd_request(2, 6, 7, 7)
    status = nbd_request(0, 7, 0, 1 << 20) + nbd_request(8, 7, 4100, 5000)
    read = nbd_request(0, 0, 3999, 70000) + nbd_request(4, 0, 0, 1 << 20) + nbd_request(0, 0, 1 << 20, 0)
    rest = nbd_request(0, 4, 0, 65536) + nbd_request(0, 3, 0, 0) + nbd_request(0, 2, 0, 0)
    wrong = nbd_request(9, 99, 2**64 - 1, 2**32 - 1) + nbd_request(0, 1, 2**20 - 1, 2, b"xx") + nbd_request(0, 0, 0, 33 << 20)
    haggling = nbd_option(3) + nbd_option(5) + nbd_option(6, b"\0\0\0\0\0\1\0\3") + nbd_option(99, b"x" * 40)
    return [
        b"\0\0\0\0\3" + structured + go + write + zero + status + read + wrong + rest,
        b"\1\0\0\0\3" + structured + go + write + zero + status + read + rest,
        b"\0\0\0\0\3" + haggling + go + write + read + wrong + rest,
        b"\0\0\0\0\0" + nbd_option(1, b"disk") + write + read + rest,
        b"\0\0\0\0\3" + haggling + nbd_option(2),
    ]


for target, patterns in FILES.items():
    folder = fuzz / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in patterns for path in vectors.glob(pattern)):
        if path.stat().st_size <= 131072:
            shutil.copyfile(path, folder / f"{path.parent.name}-{path.name}")

vmx = json.loads((vectors / "vmx/vectors.json").read_text())
texts = [case["text"] for case in vmx["locators"] + vmx["invalid_locators"]] + [case["key_safe"] for case in vmx["valid"]]
for index, text in enumerate(texts):
    (fuzz / f"corpus/locator/{index:03}").write_text(text)
for name, seed in (("luks1", luks1()), ("json", luks2_json()), ("luks2", luks2())):
    (fuzz / f"corpus/luks/{name}").write_bytes(seed)
(fuzz / "corpus/sesparse/headers").write_bytes(sesparse())
for index, seed in enumerate([block(7, b"\x02abc\x20\x02\x00d"), block(266, b"\x00a\xe0\xff\x01\x00"), block(4, b"\x00a\x3f\xff\x00\x01")]):
    (fuzz / f"corpus/vmem_expand/{index}").write_bytes(seed)
# A key, the blocks of a unit, the number of the first unit, an offset, and the data: around the batches of the kernels.
for index, (blocks, number, length) in enumerate([(32, 0, 4096), (256, 2**64 - 3, 65536), (1, 2**128 - 9, 128), (7, 2**32, 5003)]):
    seed = bytes(range(64)) + blocks.to_bytes(2, "little") + number.to_bytes(16, "little") + bytes([index]) + bytes(i % 251 for i in range(length))
    (fuzz / f"corpus/xts_differential/{index}").write_bytes(seed)
for index, seed in enumerate(nbd_clients()):
    (fuzz / f"corpus/nbd_server/{index}").write_bytes(seed)
