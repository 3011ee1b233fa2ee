//! The virtual machine of the tour: real files, real file systems.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmseal::{LocalDir, NewDisk, NewDiskType, StoragePath};

use crate::status::{Failure, Status};
use crate::tour::failed;

pub(crate) const VMX: &str = "web01.vmx";
pub(crate) const DISKS: [&str; 2] = ["web01.vmdk", "web01-data.vmdk"];
const SIZES: [u64; 2] = [96 << 20, 192 << 20];
const TYPES: [NewDiskType; 2] = [NewDiskType::MonolithicFlat, NewDiskType::MonolithicSparse];
/// Files of the guest: some that compress and some that do not, a few of them large.
const FILE_COUNT: usize = 200;
const NVRAM_LEN: usize = 74_232;

/// What was made.
pub(crate) struct Made {
    /// The files in each file system.
    pub(crate) file_count: usize,
    /// The raw image of each disk, which the disk was filled with.
    pub(crate) images: [PathBuf; 2],
}

/// Makes the VM in `vm_folder`, with what it takes in `folder`.
pub(crate) fn make(folder: &Path, vm_folder: &Path) -> Result<Made, Failure> {
    std::fs::create_dir(vm_folder).map_err(|error| failed(vm_folder, error))?;
    let source = folder.join("guest-files");
    write_guest_files(&source)?;
    let mut images = Vec::new();
    let storage = LocalDir::open(vm_folder)?;
    for ((name, size), disk_type) in DISKS.into_iter().zip(SIZES).zip(TYPES) {
        let image = folder.join(format!("{name}.raw"));
        make_file_system(&source, &image, size)?;
        fill(&storage, name, size, disk_type, &image)?;
        images.push(image);
    }
    let vmx = format!(
        ".encoding = \"UTF-8\"\nconfig.version = \"8\"\nvirtualHW.version = \"19\"\ndisplayName = \"web01\"\n\
         guestOS = \"debian12-64\"\nmemsize = \"2048\"\nnvram = \"web01.nvram\"\nscsi0.present = \"TRUE\"\n\
         scsi0.virtualDev = \"pvscsi\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"{}\"\n\
         scsi0:1.present = \"TRUE\"\nscsi0:1.fileName = \"{}\"\n",
        DISKS[0], DISKS[1]
    );
    write(&vm_folder.join(VMX), vmx.as_bytes())?;
    let nvram: Vec<u8> = noise(7).take(NVRAM_LEN).collect();
    write(&vm_folder.join("web01.nvram"), &nvram)?;
    let images = images.try_into().map_err(|_| Failure::new(Status::Failed, "there are two disks"))?;
    Ok(Made { file_count: FILE_COUNT, images })
}

fn write_guest_files(folder: &Path) -> Result<(), Failure> {
    for index in 0..FILE_COUNT {
        let folder = folder.join(format!("srv/{:02}", index % 16));
        std::fs::create_dir_all(&folder).map_err(|error| failed(&folder, error))?;
        let text = format!("file {index} of the guest web01: what nobody but its owner should read\n");
        let len = if index % 40 == 0 { 1 << 20 } else { 4000 + index * 97 };
        let bytes: Vec<u8> = if index % 2 == 0 {
            text.bytes().cycle().take(len).collect()
        } else {
            noise(index as u64 + 1).take(len).collect()
        };
        write(&folder.join(format!("file-{index:03}")), &bytes)?;
    }
    Ok(())
}

/// Bytes without a pattern: xorshift64 (Marsaglia, 2003). They need to differ, not to be secret.
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    core::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
}

fn make_file_system(source: &Path, image: &Path, size: u64) -> Result<(), Failure> {
    let file = std::fs::File::create_new(image).map_err(|error| failed(image, error))?;
    file.set_len(size).map_err(|error| failed(image, error))?;
    let output =
        system_command("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(source).arg(image).output().map_err(
            |error| Failure::new(Status::Failed, format!("mke2fs (Debian package e2fsprogs) cannot be run: {error}")),
        )?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(Status::Failed, format!("mke2fs failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// A program for the administrator: such lie in folders that are not on everyone's path.
pub(crate) fn system_command(name: &str) -> Command {
    let found =
        ["/usr/sbin", "/sbin"].into_iter().map(|folder| Path::new(folder).join(name)).find(|path| path.exists());
    Command::new(found.unwrap_or_else(|| PathBuf::from(name)))
}

/// Makes a disk and writes the image to it, leaving out what is zero as a guest would.
fn fill(storage: &LocalDir, name: &str, size: u64, disk_type: NewDiskType, image: &Path) -> Result<(), Failure> {
    let path = StoragePath::new(name)?;
    let mut disk = NewDisk::new(disk_type, size).create_and_open(storage, &path).map_err(vmseal::Error::from)?;
    let raw = std::fs::File::open(image).map_err(|error| failed(image, error))?;
    let mut buffer = vec![0; 64 << 10];
    for offset in (0..size).step_by(buffer.len()) {
        raw.read_exact_at(&mut buffer, offset).map_err(|error| failed(image, error))?;
        if buffer.iter().any(|byte| *byte != 0) {
            disk.write_at(&buffer, offset).map_err(vmseal::Error::from)?;
        }
    }
    disk.flush().map_err(vmseal::Error::from)?;
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, bytes).map_err(|error| failed(path, error))
}
