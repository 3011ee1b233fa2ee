//! The catalogue reads first bytes, headers and small texts, however long the files are.

#![allow(clippy::unwrap_used, reason = "a test fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use vmseal::{Catalogue, Memory, Storage, StoragePath, inspect_file};
use vmseal_storage::{Access, Error, File, Lock, LockMode, Metadata};

/// The bytes that were read of each file.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

struct Counting {
    inner: Memory,
    counts: Counts,
}

#[derive(Debug)]
struct CountingFile {
    inner: Box<dyn File>,
    path: String,
    counts: Counts,
}

impl Storage for Counting {
    fn open(&self, path: &StoragePath, access: Access) -> Result<Box<dyn File>, Error> {
        let inner = self.inner.open(path, access)?;
        Ok(Box::new(CountingFile { inner, path: path.to_string(), counts: self.counts.clone() }))
    }
    fn create(&self, path: &StoragePath, like: Option<&StoragePath>) -> Result<Box<dyn File>, Error> {
        self.inner.create(path, like)
    }
    fn metadata(&self, path: &StoragePath) -> Result<Option<Metadata>, Error> {
        self.inner.metadata(path)
    }
    fn list(&self, folder: &StoragePath) -> Result<Vec<String>, Error> {
        self.inner.list(folder)
    }
    fn create_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        self.inner.create_folder(folder)
    }
    fn rename(&self, from: &StoragePath, to: &StoragePath) -> Result<(), Error> {
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &StoragePath) -> Result<(), Error> {
        self.inner.remove(path)
    }
    fn sync_folder(&self, folder: &StoragePath) -> Result<(), Error> {
        self.inner.sync_folder(folder)
    }
    fn lock(&self, path: &StoragePath, mode: LockMode) -> Result<Box<dyn Lock>, Error> {
        self.inner.lock(path, mode)
    }
    fn free_bytes(&self) -> Result<Option<u64>, Error> {
        self.inner.free_bytes()
    }
}

impl File for CountingFile {
    fn len(&self) -> Result<u64, Error> {
        self.inner.len()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        *self.counts.lock().unwrap().entry(self.path.clone()).or_default() += buffer.len() as u64;
        self.inner.read_at(buffer, offset)
    }
    fn write_at(&self, data: &[u8], offset: u64) -> Result<(), Error> {
        self.inner.write_at(data, offset)
    }
    fn set_len(&self, len_bytes: u64) -> Result<(), Error> {
        self.inner.set_len(len_bytes)
    }
    fn sync(&self) -> Result<(), Error> {
        self.inner.sync()
    }
    fn punch_hole(&self, offset: u64, len_bytes: u64) -> Result<(), Error> {
        self.inner.punch_hole(offset, len_bytes)
    }
}

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/tests/vectors").join(name)).unwrap()
}

fn put(storage: &Memory, name: &str, contents: &[u8]) {
    let path = StoragePath::new(name).unwrap();
    if !path.folder().is_root() {
        storage.create_folder(&path.folder()).unwrap();
    }
    storage.replace(&path, contents).unwrap();
}

#[test]
fn ten_thousand_files_cost_their_first_bytes_and_their_texts() {
    let storage = Memory::new();
    let texts = ["vmx/xts256.vmx", "vmx/esxi-bundle.vmx", "vmdk/esxi-chain/vm.vmsd", "vmdk/esxi-encrypted/enc.vmdk"];
    let data =
        ["encobj/vm.nvram", "envelope/one-byte.ve", "vmdk/mono-sparse/mono.vmdk", "vmdk/split-sparse/p-s001.vmdk"];
    let [texts, data] = [texts, data].map(|names| names.map(|name| (name, vector(name))));
    let mut names = Vec::new();
    for index in 0..10_000 {
        let (name, contents) = if index % 2 == 0 { &texts[index / 2 % 4] } else { &data[index / 2 % 4] };
        let name = format!("{:02}/{index}-{}", index / 200, name.rsplit('/').next().unwrap());
        put(&storage, &name, contents);
        names.push(name);
    }
    // Long ones: their length must not matter.
    for (name, start) in
        [("long-flat.vmdk", &b""[..]), ("long.vmem", b"\x9e\xdd\x43\x89"), ("long.bin", b"?"), ("long.vmx", b"#")]
    {
        put(&storage, name, &[start, &vec![b'#'; 16 << 20]].concat());
        names.push(name.to_owned());
    }
    let counts = Counts::default();
    let storage = Counting { inner: storage, counts: counts.clone() };
    let mut catalogue = Catalogue::new(&storage);
    for name in &names {
        catalogue.add(&StoragePath::new(name).unwrap());
    }
    let entries = catalogue.finish();
    assert_eq!(entries.len(), names.len());
    let counts = counts.lock().unwrap();
    for entry in &entries {
        let read = counts.get(&entry.name).copied().unwrap_or(0);
        // A descriptor is read by the catalogue and by the crate that knows extents; headers, twice at most.
        let most = 2 * 8192 + 3 * entry.len_bytes.min(16 << 10);
        assert!(read <= most, "{}: {read} bytes of {} were read", entry.name, entry.len_bytes);
        assert!(entry.name.starts_with("long") || read > 0, "{} was not looked at", entry.name);
    }
}

#[test]
fn a_descriptor_cannot_hide_what_another_file_is() {
    let storage = Memory::new();
    put(&storage, "web01.vmx", &vector("vmx/xts256.vmx"));
    put(
        &storage,
        "evil.vmdk",
        b"# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"web01.vmx\" 0\n",
    );
    let mut catalogue = Catalogue::new(&storage);
    for name in ["evil.vmdk", "web01.vmx"] {
        catalogue.add(&StoragePath::new(name).unwrap());
    }
    let entries = catalogue.finish();
    assert_eq!((entries[1].kind, entries[1].encryption), ("vmx", "foreign"));
}

#[test]
fn raw_data_alone_is_not_called_plain() {
    let storage = Memory::new();
    put(&storage, "web01-flat.vmdk", &[7; 4096]);
    put(&storage, "guest-flat.vmdk", b"LUKS\xba\xbe\0\x02 what the guest wrote");
    let entry = inspect_file(&storage, &StoragePath::new("web01-flat.vmdk").unwrap());
    assert_eq!((entry.kind, entry.encryption), ("flat-extent", "unknown"));
    let descriptor = |name: &str| {
        format!(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 1 VMFS \"{name}-flat.vmdk\"\n"
        )
    };
    put(&storage, "web01.vmdk", descriptor("web01").as_bytes());
    let entry = inspect_file(&storage, &StoragePath::new("web01-flat.vmdk").unwrap());
    assert_eq!(
        (entry.kind, entry.encryption, entry.belongs_to.as_deref()),
        ("flat-extent", "none", Some("web01.vmdk"))
    );
    put(&storage, "guest.vmdk", descriptor("guest").as_bytes());
    let entry = inspect_file(&storage, &StoragePath::new("guest-flat.vmdk").unwrap());
    assert_eq!((entry.kind, entry.encryption), ("flat-extent", "none"));
}
