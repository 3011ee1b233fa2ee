//! `vmseal tour`: the main job on a real virtual machine, made for the purpose.

use std::path::{Path, PathBuf};

use vmseal::{Disks, LocalDir, LocalProviders, ProviderName, Request, Vm};

use crate::args::TourArgs;
use crate::output::Output;
use crate::progress::{Bar, catch_interrupts};
use crate::status::{Failure, Status};
use crate::tour_check::{Checks, Qemu};
use crate::tour_vm::{self, DISKS, VMX};

pub(crate) fn run(args: &TourArgs, output: &mut Output) -> Result<(), Failure> {
    catch_interrupts()?;
    let folder = Folder::new(args.keep)?;
    let mut tour = Tour { folder: &folder, output };
    tour.take()?;
    if args.keep {
        let text = format!("The VM and the state folder are left in {}.", folder.path.display());
        output.text(&text)?;
    }
    Ok(())
}

/// The temporary folder, which goes when the tour ends.
struct Folder {
    path: PathBuf,
    keep: bool,
}

impl Folder {
    fn new(keep: bool) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("vmseal-tour-{}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|error| Failure::new(Status::Failed, format!("{}: {error}", path.display())))?;
        Ok(Self { path, keep })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.keep {
            // Nothing in it is needed: what cannot be removed is the system's to clean up.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

struct Tour<'t> {
    folder: &'t Folder,
    output: &'t mut Output,
}

impl Tour<'_> {
    fn take(&mut self) -> Result<(), Failure> {
        let vm_folder = self.folder.path.join("web01");
        let home_folder = self.folder.path.join("state");
        self.head("1. A virtual machine")?;
        let made = tour_vm::make(&self.folder.path, &vm_folder)?;
        self.say(&format!(
            "Made {}: a VMX, an NVRAM, a flat and a sparse disk, each with an ext4 file system of {} files (mke2fs -d).",
            vm_folder.display(),
            made.file_count
        ))?;
        let qemu = Qemu::find();
        self.say(if qemu.is_some() {
            "qemu-img is here and is asked to confirm at each step."
        } else {
            "qemu-img is not on this machine: the steps are checked by vmseal's own reader and SHA-256 alone."
        })?;

        let storage = LocalDir::open(&vm_folder)?;
        let home = LocalDir::create_private(&home_folder)?;
        let mut keys = LocalProviders::open(&home)?;
        let provider = ProviderName::new("house").map_err(|error| Failure::usage(error.to_string()))?;
        keys.create_native(&provider, None)?;
        self.say("Made key provider `house`: its primary key lies in the state folder.")?;
        let mut checks = Checks::new(&vm_folder, qemu)?;
        let vm = Vm::open(&storage, VMX)?;
        self.disks(&mut checks, &vm, &mut keys)?;

        let steps: [(&str, &str, Request); 4] = [
            (
                "2. Encrypt",
                "New DEKs, wrapped under a new KEK; every disk and the NVRAM is rewritten.",
                Request::encrypt(&provider).disks(Disks::All),
            ),
            (
                "3. Shallow recrypt",
                "A new KEK wraps the same DEKs: the VMX and the descriptors change (the sparse disk has its own inside), no data is touched.",
                Request::shallow_recrypt(),
            ),
            (
                "4. Deep recrypt",
                "New DEKs and a new KEK; every disk is deciphered and enciphered in one pass.",
                Request::deep_recrypt(),
            ),
            ("5. Decrypt", "The data in the clear again, the keys gone.", Request::decrypt()),
        ];
        for (title, what, request) in steps {
            self.head(title)?;
            self.say(what)?;
            let plan = vm.plan(&request)?;
            let start = std::time::Instant::now();
            vm.execute(plan, &mut keys, Bar::new(self.output))?;
            self.say(&format!("Took {:.2} s. On storage:", start.elapsed().as_secs_f64()))?;
            for line in checks.changes()? {
                self.say(&format!("  {line}"))?;
            }
            self.output.text(&indented(&vm.inspect()?.to_string()))?;
            self.disks(&mut checks, &vm, &mut keys)?;
        }

        self.head("6. Nothing lost")?;
        for line in checks.end(&made)? {
            self.say(&line)?;
        }
        Ok(())
    }

    /// What each disk holds now, and who confirms it.
    fn disks(&mut self, checks: &mut Checks, vm: &Vm<'_>, keys: &mut LocalProviders<'_>) -> Result<(), Failure> {
        for name in DISKS {
            for line in checks.disk(vm, keys, name)? {
                self.say(&line)?;
            }
        }
        Ok(())
    }

    fn head(&mut self, text: &str) -> Result<(), Failure> {
        self.output.text(&format!("\n{text}"))
    }

    fn say(&mut self, text: &str) -> Result<(), Failure> {
        self.output.text(&format!("   {text}"))
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("   {line}\n")).collect()
}

/// The error of a file that the tour itself made or reads.
pub(crate) fn failed(path: &Path, error: impl core::fmt::Display) -> Failure {
    Failure::new(Status::Failed, format!("{}: {error}", path.display()))
}
