//! Lives of VMs: operations in any order, stopped, cut off, completed and undone, with writes of the guest and copies of the folder in between.
//! After every step the guest reads what a model of its disks says.
//!
//! `VMSEAL_SEQUENCES` sets how many lives there are, `VMSEAL_SEQUENCES_SEED` the first.

use core::ops::ControlFlow;

use vmseal_disk::{NewDisk, NewDiskType, UnitSize};
use vmseal_keys::TestKeys;
use vmseal_rekey::{
    Changes, Error, Journal, Progress, Request, Strategy, Unwatched, execute, open_plain_disk, pending, plan, resume,
    rollback, survey, unlock,
};
use vmseal_storage::testing::Simulated;
use vmseal_storage::{Access, Storage};

use crate::crashes::{Random, number};
use crate::testing::{path, vmx};

const DISK_LEN: usize = 160 << 10;
const DISKS: [(&str, NewDiskType); 2] = [("flat", NewDiskType::Vmfs), ("sparse", NewDiskType::MonolithicSparse)];

struct Life {
    storage: Simulated,
    keys: TestKeys,
    random: Random,
    model: [Vec<u8>; 2],
    seed: u64,
}

impl Life {
    fn new(seed: u64) -> Self {
        let storage = Simulated::new(seed);
        for folder in ["vms", "vms/web01"] {
            storage.create_folder(&path(folder)).unwrap();
        }
        let mut text = "nvram = \"web01.nvram\"\n".to_owned();
        storage.replace(&path("vms/web01/web01.nvram"), &[7; 9000]).unwrap();
        for (index, (name, disk_type)) in DISKS.iter().enumerate() {
            text += &format!("scsi0:{index}.fileName = \"{name}.vmdk\"\n");
            NewDisk::new(*disk_type, DISK_LEN as u64)
                .create(&storage, &path(&format!("vms/web01/{name}.vmdk")))
                .unwrap();
        }
        storage.replace(&vmx(), text.as_bytes()).unwrap();
        storage.settle();
        let model = [vec![0; DISK_LEN], vec![0; DISK_LEN]];
        Self { storage, keys: TestKeys::new(), random: Random(seed), model, seed }
    }

    fn is_pending(&self) -> bool {
        pending(&self.storage, &vmx()).unwrap().is_some()
    }

    fn is_plain(&self) -> bool {
        survey(&self.storage, &vmx()).unwrap().encryption.is_none()
    }

    fn request(&mut self) -> Request {
        let unit = [UnitSize::B512, UnitSize::B4096][self.random.below(2) as usize];
        let request = match (self.is_plain(), self.random.below(3)) {
            (true, _) => Request::encrypt(&TestKeys::provider("test")).unit_size(unit),
            (false, 0) => Request::shallow_recrypt(),
            (false, 1) => Request::deep_recrypt().provider(&TestKeys::provider("other")),
            (false, _) => Request::decrypt(),
        };
        let strategies = [Strategy::Copy, Strategy::InPlace(Journal::Digests), Strategy::InPlace(Journal::Data)];
        request.strategy(strategies[self.random.below(3) as usize]).memory_bytes(0)
    }

    /// One step, and what it was.
    fn step(&mut self) -> &'static str {
        match self.random.below(10) {
            0 => {
                self.copy();
                "a copy"
            }
            1..=3 => {
                self.write();
                "writes of the guest"
            }
            _ => self.operate(),
        }
    }

    /// Begins an operation or goes on with one; it may be stopped or cut off.
    fn operate(&mut self) -> &'static str {
        let magnitude = 1 + self.random.below(9);
        let (interruption, at) = (self.random.below(3), self.random.below(1 << magnitude));
        if interruption == 1 {
            self.storage.crash_at(Some(self.storage.operations() + at));
        }
        let mut left = if interruption == 2 { at % 16 } else { u64::MAX };
        let mut watch = |_: &Progress| {
            let stop = left == 0;
            left = left.saturating_sub(1);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let is_pending = pending(&self.storage, &vmx());
        let result = match is_pending {
            Err(error) => Err(error),
            Ok(None) => {
                // Planned without the fault: the survey is not what is tested here.
                self.storage.crash_at(None);
                let request = self.request();
                let planned = plan(&survey(&self.storage, &vmx()).unwrap(), &request).unwrap();
                if interruption == 1 {
                    self.storage.crash_at(Some(self.storage.operations() + at));
                }
                execute(&self.storage, &planned, &mut self.keys, &mut watch).map(drop)
            }
            Ok(Some(_)) if self.random.below(3) == 0 => {
                match rollback(&self.storage, &vmx(), &mut self.keys, &mut watch, Changes::Keep) {
                    // The second: an undo was cut off and the folder copied, so that the file could be its own successor.
                    Err(Error::Committed { .. } | Error::SuccessorLost { .. }) => Ok(()),
                    other => other.map(drop),
                }
            }
            Ok(Some(_)) => resume(&self.storage, &vmx(), &mut self.keys, &mut watch, Changes::Keep).map(drop),
        };
        let crashed = self.storage.has_crashed();
        self.storage.crash_at(None);
        if crashed {
            self.storage.restart();
            return "a power cut";
        }
        match result {
            Ok(()) => "an end",
            Err(Error::Stopped) => "a stop",
            Err(error) => panic!("life {}: {error}: {error:?}", self.seed),
        }
    }

    /// The guest writes, where nothing is pending.
    fn write(&mut self) {
        if self.is_pending() {
            return;
        }
        let is_plain = self.is_plain();
        for _ in 0..=self.random.below(3) {
            let index = self.random.below(2) as usize;
            let disk_path = path(&format!("vms/web01/{}.vmdk", DISKS[index].0));
            let len = (1 + self.random.below(1 << (3 + index * 3 + 8))) as usize;
            let len = len.min(DISK_LEN);
            let at = self.random.below((DISK_LEN - len + 1) as u64) as usize;
            let zeros = self.random.below(4) == 0;
            let bytes: Vec<u8> = (0..len).map(|_| if zeros { 0 } else { self.random.next() as u8 }).collect();
            let access = Access::ReadWrite;
            let mut disk = if is_plain {
                open_plain_disk(&self.storage, &vmx(), &disk_path, access).unwrap()
            } else {
                let unlocked = unlock(&self.storage, &vmx(), &mut self.keys).unwrap();
                unlocked.open_disk(&self.storage, &disk_path, access, &mut self.keys).unwrap()
            };
            disk.write_at(&bytes, at as u64).unwrap();
            disk.flush().unwrap();
            self.model[index][at..at + len].copy_from_slice(&bytes);
        }
    }

    /// The folder is copied by a program that fills holes, or makes them where there are zeros; the copy is used from now on.
    fn copy(&mut self) {
        let fills = self.random.below(2) == 0;
        let copy = Simulated::new(self.random.next());
        for folder in ["vms", "vms/web01"] {
            copy.create_folder(&path(folder)).unwrap();
        }
        for path in self.storage.paths() {
            let bytes = self.storage.read(&path, 64 << 20).unwrap();
            let file = copy.create(&path, None).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
            for (index, block) in bytes.chunks(4096).enumerate() {
                if fills || block.iter().any(|byte| *byte != 0) {
                    file.write_at(block, index as u64 * 4096).unwrap();
                }
            }
        }
        copy.settle();
        self.storage = copy;
    }

    /// The guest reads what the model says. What is pending is completed or undone for this on a copy.
    fn check(&mut self, what: &str) {
        let storage = self.storage.snapshot(self.random.next());
        if self.is_pending() {
            let undo = self.random.below(2) == 0;
            let mut result = Err(Error::Stopped);
            if undo {
                result = rollback(&storage, &vmx(), &mut self.keys, &mut Unwatched, Changes::Keep);
            }
            if !undo || matches!(result, Err(Error::Committed { .. } | Error::SuccessorLost { .. })) {
                result = resume(&storage, &vmx(), &mut self.keys, &mut Unwatched, Changes::Keep);
            }
            result.unwrap_or_else(|error| panic!("life {}: after {what}: {error}: {error:?}", self.seed));
            storage.restart();
        }
        let is_plain = survey(&storage, &vmx()).unwrap().encryption.is_none();
        for ((name, _), model) in DISKS.iter().zip(&self.model) {
            let disk_path = path(&format!("vms/web01/{name}.vmdk"));
            let mut bytes = vec![1; DISK_LEN];
            if is_plain {
                open_plain_disk(&storage, &vmx(), &disk_path, Access::Read).unwrap().read_at(&mut bytes, 0).unwrap();
            } else {
                let unlocked = unlock(&storage, &vmx(), &mut self.keys).unwrap();
                let disk = unlocked.open_disk(&storage, &disk_path, Access::Read, &mut self.keys).unwrap();
                disk.read_at(&mut bytes, 0).unwrap();
            }
            let differs = bytes.iter().zip(model).position(|(found, wanted)| found != wanted);
            assert_eq!(differs, None, "life {}: {name} after {what}", self.seed);
        }
    }
}

#[test]
fn a_vm_lives_through_any_sequence_of_operations() {
    let (first, count) = (number("VMSEAL_SEQUENCES_SEED", 1), number("VMSEAL_SEQUENCES", 60));
    let mut seen = std::collections::BTreeMap::<&str, u64>::new();
    for seed in first..first + count {
        let mut life = Life::new(seed);
        life.write();
        for _ in 0..30 {
            let what = life.step();
            *seen.entry(what).or_default() += 1;
            life.check(what);
        }
    }
    println!("{count} lives from seed {first}: {seen:?}");
    assert_eq!(seen.len(), 5, "{seen:?}");
}
