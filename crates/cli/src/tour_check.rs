//! What the tour checks at each step, and by whom: SHA-256 of files and disks, a search for plain sectors, and QEMU.

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};
use vmseal::{KeySource, LocalDir, Vm};

use crate::output::hex;
use crate::status::{Failure, Status};
use crate::tour::failed;
use crate::tour_vm::{DISKS, Made, VMX, system_command};

const SECTOR_LEN: usize = 512;
const CHUNK_LEN: usize = 1 << 20;

/// The state of the VM's files as it was last seen, and as it was at first.
pub(crate) struct Checks {
    folder: PathBuf,
    qemu: Option<Qemu>,
    first: BTreeMap<String, String>,
    last: BTreeMap<String, String>,
    /// The SHA-256 of each disk's guest bytes, as they were at first.
    disks: BTreeMap<&'static str, String>,
    /// A hash of each sector of the plain disks.
    plain_sectors: HashSet<[u8; 16]>,
}

impl Checks {
    pub(crate) fn new(folder: &Path, qemu: Option<Qemu>) -> Result<Self, Failure> {
        let first = file_digests(folder)?;
        let last = first.clone();
        let (disks, plain_sectors) = (BTreeMap::new(), HashSet::new());
        Ok(Self { folder: folder.to_owned(), qemu, first, last, disks, plain_sectors })
    }

    /// What happened to each file since the last call.
    pub(crate) fn changes(&mut self) -> Result<Vec<String>, Failure> {
        let now = file_digests(&self.folder)?;
        let names: std::collections::BTreeSet<&String> = now.keys().chain(self.last.keys()).collect();
        let lines = names
            .into_iter()
            .map(|name| {
                let change = match (self.last.get(name), now.get(name)) {
                    (None, Some(_)) => "new",
                    (Some(_), None) => "gone",
                    (old, new) if old == new => "unchanged",
                    _ => "replaced",
                };
                format!("{name:22} {change:10} sha256 {}", now.get(name).map_or("", String::as_str))
            })
            .collect();
        self.last = now;
        Ok(lines)
    }

    /// Checks one disk: the guest's bytes are what they were, and where the disk is encrypted nothing else shows them.
    pub(crate) fn disk(
        &mut self,
        vm: &Vm<'_>,
        keys: &mut dyn KeySource,
        name: &'static str,
    ) -> Result<Vec<String>, Failure> {
        let encrypted = vm.inspect()?.state.encryption != "none";
        let digest = self.guest_digest(vm, keys, name, encrypted)?;
        let mut lines = vec![format!("{name}: the guest's bytes have sha256 {digest}")];
        match self.disks.get(name) {
            None => {
                self.disks.insert(name, digest);
            }
            Some(first) if *first == digest => lines[0].push_str(", as at first"),
            Some(_) => return Err(Failure::new(Status::Failed, format!("{name}: the guest's bytes have changed"))),
        }
        if encrypted {
            let found = self.search_plain_sectors()?;
            if let Some(found) = found {
                return Err(Failure::new(Status::Failed, format!("a plain sector is found in {found}")));
            }
            lines.push(format!(
                "{name}: none of the {} different sectors of the plain disks is found in any file of the folder",
                self.plain_sectors.len()
            ));
        }
        if let Some(qemu) = &self.qemu {
            lines.push(qemu.confirm(&self.folder, name, &self.disks[name], encrypted)?);
        }
        Ok(lines)
    }

    /// At the end: every file is what it was at first, and the file systems are clean.
    pub(crate) fn end(&mut self, made: &Made) -> Result<Vec<String>, Failure> {
        let now = file_digests(&self.folder)?;
        if now != self.first {
            return Err(Failure::new(Status::Failed, "the files are not those of the start"));
        }
        let mut lines = vec![format!("All {} files of the VM have the SHA-256 that they had at first.", now.len())];
        for (name, image) in DISKS.into_iter().zip(&made.images) {
            let copy = image.with_extension("out");
            let storage = LocalDir::open(&self.folder)?;
            copy_disk(&Vm::open(&storage, VMX)?, name, &copy)?;
            let check = system_command("e2fsck").args(["-f", "-n"]).arg(&copy).output();
            let check =
                check.map_err(|error| Failure::new(Status::Failed, format!("e2fsck cannot be run: {error}")))?;
            if !check.status.success() {
                let what = String::from_utf8_lossy(&check.stdout).into_owned();
                return Err(Failure::new(Status::Failed, format!("{name}: e2fsck found faults: {what}")));
            }
            lines.push(format!("{name}: e2fsck finds the file system clean."));
        }
        Ok(lines)
    }

    fn guest_digest(
        &mut self,
        vm: &Vm<'_>,
        keys: &mut dyn KeySource,
        name: &str,
        encrypted: bool,
    ) -> Result<String, Failure> {
        let is_first = !self.disks.contains_key(name);
        let plain_sectors = &mut self.plain_sectors;
        let mut digest = Sha256::new();
        let mut take = |chunk: &[u8]| {
            digest.update(chunk);
            for sector in chunk.chunks(SECTOR_LEN).filter(|sector| is_first && is_telling(sector)) {
                plain_sectors.insert(short_digest(sector));
            }
        };
        if encrypted {
            let mut unlocked = vm.unlock(keys)?;
            read_disk(&unlocked.open_disk(name)?, &mut take)?;
        } else {
            read_disk(&vm.open_plain_disk(name)?, &mut take)?;
        }
        Ok(hex(&digest.finalize()))
    }

    /// The first file with a sector of the plain disks in it, at any offset that is a multiple of 512.
    fn search_plain_sectors(&self) -> Result<Option<String>, Failure> {
        for name in self.last.keys() {
            let mut found = false;
            read_file(&self.folder.join(name), &mut |chunk| {
                found |= chunk.chunks(SECTOR_LEN).any(|sector| self.plain_sectors.contains(&short_digest(sector)));
            })?;
            if found {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }
}

/// Sectors of one repeated byte are found everywhere and say nothing.
fn is_telling(sector: &[u8]) -> bool {
    sector.iter().any(|byte| *byte != sector[0])
}

fn short_digest(sector: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(sector)[..16]);
    short
}

fn read_disk(disk: &vmseal::Disk<'_>, take: &mut dyn FnMut(&[u8])) -> Result<(), Failure> {
    let mut buffer = vec![0; CHUNK_LEN];
    let mut offset = 0;
    while offset < disk.size_bytes() {
        let len = buffer.len().min(usize::try_from(disk.size_bytes() - offset).unwrap_or(usize::MAX));
        disk.read_at(&mut buffer[..len], offset).map_err(vmseal::Error::from)?;
        take(&buffer[..len]);
        offset += len as u64;
    }
    Ok(())
}

fn copy_disk(vm: &Vm<'_>, name: &str, to: &Path) -> Result<(), Failure> {
    let disk = vm.open_plain_disk(name)?;
    let file = std::fs::File::create(to).map_err(|error| failed(to, error))?;
    file.set_len(disk.size_bytes()).map_err(|error| failed(to, error))?;
    let mut offset = 0;
    let mut result = Ok(());
    read_disk(&disk, &mut |chunk| {
        if result.is_ok() && chunk.iter().any(|byte| *byte != 0) {
            result = file.write_all_at(chunk, offset);
        }
        offset += chunk.len() as u64;
    })?;
    result.map_err(|error| failed(to, error))
}

fn read_file(path: &Path, take: &mut dyn FnMut(&[u8])) -> Result<(), Failure> {
    let file = std::fs::File::open(path).map_err(|error| failed(path, error))?;
    let len = file.metadata().map_err(|error| failed(path, error))?.len();
    let mut buffer = vec![0; CHUNK_LEN];
    let mut offset = 0;
    while offset < len {
        let part = buffer.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..part], offset).map_err(|error| failed(path, error))?;
        take(&buffer[..part]);
        offset += part as u64;
    }
    Ok(())
}

fn file_digests(folder: &Path) -> Result<BTreeMap<String, String>, Failure> {
    let mut digests = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let entry = entry.map_err(|error| failed(folder, error))?;
        let mut digest = Sha256::new();
        read_file(&entry.path(), &mut |chunk| digest.update(chunk))?;
        digests.insert(entry.file_name().to_string_lossy().into_owned(), hex(&digest.finalize()));
    }
    Ok(digests)
}

/// QEMU as a second reader.
pub(crate) struct Qemu;

impl Qemu {
    pub(crate) fn find() -> Option<Self> {
        let output = Command::new("qemu-img").arg("--version").output().ok()?;
        output.status.success().then_some(Self)
    }

    /// Lets QEMU read a disk as it lies: the guest's bytes where it is plain, others where it is encrypted.
    fn confirm(&self, folder: &Path, name: &str, plain: &str, encrypted: bool) -> Result<String, Failure> {
        let path = folder.join(name);
        let raw = folder.with_file_name("qemu.raw");
        let convert =
            Command::new("qemu-img").args(["convert", "-f", "vmdk", "-O", "raw"]).arg(&path).arg(&raw).output();
        let convert = convert.map_err(|error| failed(&path, error))?;
        if !convert.status.success() {
            let what = String::from_utf8_lossy(&convert.stderr).into_owned();
            return Err(Failure::new(Status::Failed, format!("{name}: qemu-img cannot read it: {what}")));
        }
        let mut digest = Sha256::new();
        read_file(&raw, &mut |chunk| digest.update(chunk))?;
        std::fs::remove_file(&raw).map_err(|error| failed(&raw, error))?;
        match (hex(&digest.finalize()) == *plain, encrypted) {
            (true, false) => Ok(format!("{name}: qemu-img reads the same bytes")),
            (false, true) => Ok(format!("{name}: qemu-img opens the disk and reads ciphertext")),
            _ => Err(Failure::new(Status::Failed, format!("{name}: qemu-img reads other bytes than expected"))),
        }
    }
}
