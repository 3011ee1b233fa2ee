//! A text that a person edits, in memory and nowhere else.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use zeroize::Zeroizing;

use crate::status::{Failure, Status};

/// Storage that is memory, on every Linux.
const MEMORY: &str = "/dev/shm";
/// An edited VMX is a few KiB.
const LEN_MAX: u64 = 4 << 20;

/// A file in memory-backed storage, in a folder that only its owner may enter. It is wiped when it is dropped, with whatever the editor left
/// beside it.
#[derive(Debug)]
pub(crate) struct Draft {
    folder: PathBuf,
    file: PathBuf,
}

impl Draft {
    pub(crate) fn new(name: &str, text: &[u8]) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Status::Failed, format!("{MEMORY}: no draft was made: {error}"));
        check_memory()?;
        let mut random = [0; 8];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut random)).map_err(failed)?;
        let folder = Path::new(MEMORY).join(format!("vmseal-{:016x}", u64::from_le_bytes(random)));
        DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
        let draft = Self { file: folder.join(name), folder };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft.file).map_err(failed)?;
        file.write_all(text).map_err(failed)?;
        Ok(draft)
    }

    /// Runs `$VISUAL`, else `$EDITOR`, else `vi`, and waits for its end.
    pub(crate) fn open_in_editor(&self) -> Result<(), Failure> {
        let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let editor = named("VISUAL").or_else(|| named("EDITOR")).unwrap_or_else(|| "vi".into());
        // The variable may hold arguments: the shell takes it apart, as it does for other programs that use it.
        let mut script = editor.clone();
        script.push(" \"$@\"");
        let status = Command::new("sh").arg("-c").arg(&script).arg("sh").arg(&self.file).status();
        let what = match status {
            Ok(status) if status.success() => return Ok(()),
            Ok(status) => format!("ended with {status}"),
            Err(error) => format!("did not start: {error}"),
        };
        let editor = editor.to_string_lossy().into_owned();
        Err(Failure::new(Status::Failed, format!("the editor {editor} {what}; nothing was changed")))
    }

    pub(crate) fn read(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let failed =
            |what: String| Failure::new(Status::Failed, format!("the edited text {what}; nothing was changed"));
        let file = File::open(&self.file).map_err(|error| failed(format!("cannot be read: {error}")))?;
        let mut text = Zeroizing::new(Vec::with_capacity(64 << 10));
        file.take(LEN_MAX + 1).read_to_end(&mut text).map_err(|error| failed(format!("cannot be read: {error}")))?;
        if text.len() as u64 > LEN_MAX {
            return Err(failed(format!("is longer than {LEN_MAX} bytes")));
        }
        Ok(text)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // What cannot be wiped is removed all the same; its memory is given back then.
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                let _ = wipe(&entry.path());
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn wipe(file: &Path) -> std::io::Result<()> {
    let len = std::fs::metadata(file)?.len();
    let mut file = OpenOptions::new().write(true).open(file)?;
    std::io::copy(&mut std::io::repeat(0).take(len), &mut file).map(drop)
}

/// Refuses where the folder is a disk's.
fn check_memory() -> Result<(), Failure> {
    #[cfg(target_os = "linux")]
    {
        // TMPFS_MAGIC of statfs(2); the type of the field is the platform's.
        if rustix::fs::statfs(MEMORY).is_ok_and(|info| info.f_type == 0x0102_1994) {
            return Ok(());
        }
    }
    let what = "there is no memory-backed storage at this place, and a draft is not written to a disk";
    Err(Failure::new(Status::Failed, format!("{MEMORY}: {what}; use `vmx set`")))
}
