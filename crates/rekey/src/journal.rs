//! The journal of a conversion in place: what tells old data from new after a crash.
//!
//! `<VMX name>.vmseal-journal` has two slots that are written in turn, described in `docs/formats/operation.md`. Before a zone of the data is
//! overwritten, a slot with its place and a keyed digest of every 512 bytes of its old content is durable: 512 bytes is what storage
//! writes whole, whatever the data unit. Where storage may tear even those, the slot holds the new content itself. A slot also has the digests of the
//! zone that comes next, so that one damaged slot loses nothing. Each slot is authenticated: who has none of the VM's keys cannot make recovery
//! write anything.

use hkdf::Hkdf;
use hmac::Mac;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use vmseal_storage::{Access, File, Storage, StoragePath};
use vmseal_xts::XtsAes256;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::record::{hmac, remove_durably};

/// What is appended to the name of the VMX.
const SUFFIX: &str = ".vmseal-journal";
const MAGIC: &[u8; 8] = b"VMSEALJ1";
const HEADER_LEN: usize = 96;
const RUN_LEN: usize = 24;
const MAC_LEN: usize = 32;
/// Slots begin at multiples of this: a write of one never touches a block of the other.
const SLOT_ALIGN: u64 = 4096;

/// The bytes that storage writes whole.
pub(crate) const PIECE_LEN: usize = 512;
/// The bytes of a piece's digest: a wrong match has a chance of 2^-64, in a zone that a crash has hit.
pub(crate) const DIGEST_LEN: usize = 8;

/// What a conversion in place keeps in its journal.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Journal {
    /// Digests of the old data. Enough where storage writes 512 bytes whole, as disks do.
    Digests,
    /// The new data. For storage that may tear a write anywhere; everything is written twice.
    Data,
}

/// The keys of one operation's journal.
pub(crate) struct JournalKey {
    mac: Zeroizing<[u8; 32]>,
    digest: XtsAes256,
    id: [u8; 16],
}

impl JournalKey {
    /// Derived from the key of the operation's record, and the operation's random ID.
    pub(crate) fn derive(record_key: &[u8; 32], id: [u8; 16]) -> Result<Self, Error> {
        let hkdf = Hkdf::<Sha256>::new(Some(&id), record_key);
        let (mut mac, mut digest) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 64]));
        for (info, output) in
            [(b"journal mac".as_slice(), mac.as_mut_slice()), (b"journal digest", digest.as_mut_slice())]
        {
            if hkdf.expand(info, output).is_err() {
                unreachable!("HKDF-SHA-256 gives up to 8160 bytes (RFC 5869, 2.3)");
            }
        }
        Ok(Self { mac, digest: XtsAes256::new(&digest).map_err(vmseal_disk::Error::Xts)?, id })
    }

    /// The digests of `data`, which begins at byte `offset` of the file with the number `file`: the XOR of the blocks of each piece under
    /// XTS-AES-256, which is PMAC's sum, cut to 8 bytes. The number of the piece in all files is the tweak.
    pub(crate) fn digests(
        &self,
        file: u32,
        offset: u64,
        data: &[u8],
        scratch: &mut Vec<u8>,
        digests: &mut [u8],
    ) -> Result<(), Error> {
        let whole = data.len() / PIECE_LEN * PIECE_LEN;
        scratch.resize(data.len().next_multiple_of(PIECE_LEN), 0);
        let number = (u128::from(file) << 64) | u128::from(offset / PIECE_LEN as u64);
        let xts = |source: &[u8], target: &mut [u8], number| {
            self.digest.encrypt_units_to(source, target, PIECE_LEN, number).map_err(vmseal_disk::Error::Xts)
        };
        xts(&data[..whole], &mut scratch[..whole], number)?;
        if whole < data.len() {
            let mut last = Zeroizing::new([0; PIECE_LEN]);
            last[..data.len() - whole].copy_from_slice(&data[whole..]);
            xts(last.as_slice(), &mut scratch[whole..], number + (whole / PIECE_LEN) as u128)?;
        }
        for (piece, digest) in scratch.chunks(PIECE_LEN).zip(digests.chunks_mut(DIGEST_LEN)) {
            let blocks: &[[u8; 16]] = piece.as_chunks().0;
            let sum = blocks.iter().fold(0, |sum, block| sum ^ u128::from_le_bytes(*block));
            digest.copy_from_slice(&sum.to_le_bytes()[..DIGEST_LEN]);
        }
        Ok(())
    }
}

/// How many bytes the digests of `len` bytes have.
pub(crate) fn digests_len(len: usize) -> usize {
    len.div_ceil(PIECE_LEN) * DIGEST_LEN
}

/// A run of the guest's bytes in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) virtual_byte: u64,
}

/// What is converted between two syncs: runs of one file, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zone {
    pub(crate) file: u32,
    pub(crate) runs: Vec<Run>,
}

impl Zone {
    pub(crate) fn data_len(&self) -> usize {
        self.runs.iter().map(|run| run.len as usize).sum()
    }

    /// Where it ends in its file.
    pub(crate) fn end(&self) -> u64 {
        self.runs.last().map_or(0, |run| run.offset + run.len)
    }
}

/// A zone with what its old content was.
#[derive(Debug)]
pub(crate) struct Noted {
    pub(crate) zone: Zone,
    pub(crate) digests: Vec<u8>,
}

/// What a slot says.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) generation: u64,
    /// The zone that was about to be written.
    pub(crate) current: Noted,
    /// Its new content, where the journal has it.
    pub(crate) data: Option<Zeroizing<Vec<u8>>>,
    /// The zone that comes next.
    pub(crate) next: Option<Noted>,
}

/// The sizes of a journal, which its record has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) mode: Journal,
    pub(crate) zone_bytes: u64,
}

impl Shape {
    /// Runs that a zone has at most.
    pub(crate) fn runs_max(self) -> usize {
        (self.zone_bytes / 4096) as usize + 1
    }

    fn slot_len(self) -> u64 {
        // Each run may end in a piece that is not whole.
        let digests = (self.zone_bytes / PIECE_LEN as u64 + self.runs_max() as u64) * DIGEST_LEN as u64;
        let data = if self.mode == Journal::Data { self.zone_bytes } else { 0 };
        let len = (HEADER_LEN + 2 * self.runs_max() * RUN_LEN + MAC_LEN) as u64 + 2 * digests + data;
        len.next_multiple_of(SLOT_ALIGN)
    }

    /// The bytes of the whole journal.
    pub(crate) fn len_bytes(self) -> u64 {
        2 * self.slot_len()
    }
}

/// An open journal.
pub(crate) struct JournalFile {
    file: Box<dyn File>,
    key: JournalKey,
    shape: Shape,
    pass: u32,
}

impl JournalFile {
    /// Where the journal of a VM lies.
    pub(crate) fn path(vmx: &StoragePath) -> StoragePath {
        vmx.with_suffix(SUFFIX)
    }

    /// Makes an empty journal with all the room it will need, so that no full disk stops a conversion half-way.
    pub(crate) fn create(
        storage: &dyn Storage,
        vmx: &StoragePath,
        key: JournalKey,
        shape: Shape,
    ) -> Result<Self, Error> {
        let path = Self::path(vmx);
        if storage.metadata(&path)?.is_some() {
            storage.remove(&path)?;
        }
        let file = storage.create(&path, Some(vmx))?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < shape.len_bytes() {
            let len = zeros.len().min((shape.len_bytes() - at) as usize);
            file.write_at(&zeros[..len], at)?;
            at += len as u64;
        }
        file.sync()?;
        storage.sync_folder(&path.folder())?;
        Ok(Self { file, key, shape, pass: 0 })
    }

    /// Opens the journal of an interrupted operation.
    pub(crate) fn open(
        storage: &dyn Storage,
        vmx: &StoragePath,
        key: JournalKey,
        shape: Shape,
        pass: u32,
    ) -> Result<Self, Error> {
        let file = storage.open(&Self::path(vmx), Access::ReadWrite)?;
        Ok(Self { file, key, shape, pass })
    }

    /// Removes the journal: nothing needs it any longer. Durably: the record must not go before it.
    pub(crate) fn remove(storage: &dyn Storage, vmx: &StoragePath) -> Result<(), Error> {
        remove_durably(storage, &Self::path(vmx))
    }

    pub(crate) fn key(&self) -> &JournalKey {
        &self.key
    }

    /// From here on slots are those of another pass over the data: earlier ones count no longer.
    pub(crate) fn set_pass(&mut self, pass: u32) {
        self.pass = pass;
    }

    /// Writes the slot of `generation`, and makes it durable. `data` is the new content of `current`, which only a journal of data keeps.
    pub(crate) fn write(
        &self,
        generation: u64,
        current: (&Zone, &[u8]),
        data: &[u8],
        next: Option<(&Zone, &[u8])>,
    ) -> Result<(), Error> {
        let empty = Zone::default();
        let (next_zone, next_digests) = next.unwrap_or((&empty, &[]));
        let mut head = Vec::with_capacity(HEADER_LEN + (current.0.runs.len() + next_zone.runs.len()) * RUN_LEN);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&self.key.id);
        head.extend_from_slice(&self.pass.to_le_bytes());
        head.extend_from_slice(&u32::from(self.shape.mode == Journal::Data).to_le_bytes());
        head.extend_from_slice(&generation.to_le_bytes());
        for zone in [current.0, next_zone] {
            head.extend_from_slice(&zone.file.to_le_bytes());
            head.extend_from_slice(&(zone.runs.len() as u32).to_le_bytes());
        }
        for zone in [current.0, next_zone] {
            head.extend_from_slice(&(zone.data_len() as u64).to_le_bytes());
        }
        head.resize(HEADER_LEN, 0);
        for run in current.0.runs.iter().chain(&next_zone.runs) {
            for value in [run.offset, run.len, run.virtual_byte] {
                head.extend_from_slice(&value.to_le_bytes());
            }
        }
        let data = if self.shape.mode == Journal::Data { data } else { &[] };
        let mut mac = hmac(&self.key.mac);
        let mut at = self.slot_offset(generation);
        let end = at + self.shape.slot_len();
        for part in [head.as_slice(), current.1, next_digests, data] {
            mac.update(part);
            self.file.write_at(part, at)?;
            at += part.len() as u64;
        }
        debug_assert!(at + MAC_LEN as u64 <= end, "a slot has room for every zone");
        self.file.write_at(&mac.finalize().into_bytes(), at)?;
        self.file.sync()?;
        Ok(())
    }

    /// The two slots, newest first; what does not verify is left out.
    pub(crate) fn read(&self) -> Result<Vec<Slot>, Error> {
        let mut slots = Vec::new();
        let len = self.file.len()?;
        for index in 0..2 {
            let start = index * self.shape.slot_len();
            let mut bytes = Zeroizing::new(vec![0; self.shape.slot_len().min(len.saturating_sub(start)) as usize]);
            self.file.read_at(&mut bytes, start.min(len))?;
            slots.extend(self.parse(&bytes));
        }
        slots.sort_by_key(|slot: &Slot| core::cmp::Reverse(slot.generation));
        Ok(slots)
    }

    /// One place where the bytes of a slot become values.
    fn parse(&self, bytes: &[u8]) -> Option<Slot> {
        let mut rest = bytes;
        let header: &[u8; HEADER_LEN] = take(&mut rest, HEADER_LEN)?.try_into().ok()?;
        let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let is_ours = &header[..8] == MAGIC
            && header[8..24] == self.key.id
            && u32_at(24) == self.pass
            && u32_at(28) == u32::from(self.shape.mode == Journal::Data);
        if !is_ours {
            return None;
        }
        let zone = |at: usize, len_at: usize, rest: &mut &[u8]| -> Option<Zone> {
            let count = usize::try_from(u32_at(at + 4)).ok().filter(|count| *count <= self.shape.runs_max())?;
            let runs = take(rest, count * RUN_LEN)?.as_chunks::<RUN_LEN>().0.iter().map(parse_run).collect();
            let zone = Zone { file: u32_at(at), runs };
            let len = zone.runs.iter().try_fold(0_u64, |sum, run| sum.checked_add(run.len))?;
            (len == u64_at(len_at) && len <= self.shape.zone_bytes).then_some(zone)
        };
        let current = zone(40, 56, &mut rest)?;
        let next = zone(48, 64, &mut rest)?;
        let current = Noted { digests: take(&mut rest, run_digests_len(&current))?.to_vec(), zone: current };
        let next = Noted { digests: take(&mut rest, run_digests_len(&next))?.to_vec(), zone: next };
        let data = match self.shape.mode {
            Journal::Digests => None,
            Journal::Data => Some(Zeroizing::new(take(&mut rest, current.zone.data_len())?.to_vec())),
        };
        let mut mac = hmac(&self.key.mac);
        mac.update(&bytes[..bytes.len() - rest.len()]);
        mac.verify_slice(take(&mut rest, MAC_LEN)?).ok()?;
        let next = Some(next).filter(|next| !next.zone.runs.is_empty());
        Some(Slot { generation: u64_at(32), current, data, next })
    }

    fn slot_offset(&self, generation: u64) -> u64 {
        generation % 2 * self.shape.slot_len()
    }
}

/// The bytes of a zone's digests: each run has its own, so that a piece that is not whole ends where its run does.
pub(crate) fn run_digests_len(zone: &Zone) -> usize {
    zone.runs.iter().map(|run| digests_len(run.len as usize)).sum()
}

fn parse_run(bytes: &[u8; RUN_LEN]) -> Run {
    let value = |index: usize| bytes.as_chunks().0.get(index).map_or(0, |value| u64::from_le_bytes(*value));
    Run { offset: value(0), len: value(1), virtual_byte: value(2) }
}

fn take<'b>(rest: &mut &'b [u8], len: usize) -> Option<&'b [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}
