"""Lays the vectors of crates/formats into fuzz/corpus, as the seeds of each target."""

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
(fuzz / "corpus/sesparse/headers").write_bytes(sesparse())
for index, seed in enumerate([block(7, b"\x02abc\x20\x02\x00d"), block(266, b"\x00a\xe0\xff\x01\x00"), block(4, b"\x00a\x3f\xff\x00\x01")]):
    (fuzz / f"corpus/vmem_expand/{index}").write_bytes(seed)
# A key, the blocks of a unit, the number of the first unit, an offset, and the data: around the batches of the kernels.
for index, (blocks, number, length) in enumerate([(32, 0, 4096), (256, 2**64 - 3, 65536), (1, 2**128 - 9, 128), (7, 2**32, 5003)]):
    seed = bytes(range(64)) + blocks.to_bytes(2, "little") + number.to_bytes(16, "little") + bytes([index]) + bytes(i % 251 for i in range(length))
    (fuzz / f"corpus/xts_differential/{index}").write_bytes(seed)
