//! What a crash left of a conversion in place, and how it is mended.

use zeroize::Zeroizing;

use crate::error::Error;
use crate::in_place::{Pass, Target, chunks};
use crate::journal::{DIGEST_LEN, JournalFile, JournalKey, Noted, PIECE_LEN, Run, digests_len};
use crate::publish::Changes;
use crate::record::Frontier;

/// Where a pass goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Everything before it is converted and durable.
    pub(crate) reached: Frontier,
    /// The number of the last slot.
    pub(crate) generation: u64,
}

impl Pass<'_> {
    /// Completes the zone that a crash cut off. `None` where no slot of this pass is there. `changes` says what to do with 512 bytes that are neither
    /// their old content nor their new one: stop and say where they are, or leave them as they are.
    pub(crate) fn recover(&self, journal: &JournalFile, changes: Changes) -> Result<Option<Recovered>, Error> {
        let slots = journal.read()?;
        let Some(newest) = slots.first() else { return Ok(None) };
        let data = match &newest.data {
            Some(data) => data.clone(),
            None => self.completed(journal.key(), &newest.current, changes)?,
        };
        // A program that ended, or a sync that failed, may have left it in the system's memory alone; data may change only once it is durable.
        let after = newest.next.as_ref().map(|next| (&next.zone, next.digests.as_slice()));
        journal.write(newest.generation, (&newest.current.zone, &newest.current.digests), &data, after)?;
        self.put(&newest.current, &data)?;
        let mut recovered = Recovered { reached: end(&newest.current), generation: newest.generation };
        if let Some(next) = &newest.next
            && let Some(offset) = self.first_change(journal.key(), next)?
        {
            if slots.get(1).is_some_and(|slot| slot.generation + 1 == newest.generation) {
                // The slot of the zone after it was never durable, so that nothing of it can be new.
                let path = self.target(next)?.path.to_string();
                return Err(Error::JournalOutdated { path, offset });
            }
            // That slot was durable, and damaged later: it is made once more.
            let data = self.completed(journal.key(), next, changes)?;
            recovered = Recovered { reached: end(next), generation: newest.generation + 1 };
            self.note(journal, recovered, (&next.zone, &next.digests), &data)?;
            self.put(next, &data)?;
        }
        Ok(Some(recovered))
    }

    fn target(&self, noted: &Noted) -> Result<&Target, Error> {
        let file = noted.zone.file as usize;
        self.targets.get(file).ok_or(Error::JournalDamaged { what: "it names an extent that the VM does not have" })
    }

    /// A zone as it has to become: what is still old of it is converted.
    fn completed(&self, key: &JournalKey, noted: &Noted, changes: Changes) -> Result<Zeroizing<Vec<u8>>, Error> {
        let target = self.target(noted)?;
        let mut whole = Zeroizing::new(vec![0; noted.zone.data_len()]);
        let mut left = whole.as_mut_slice();
        for (chunk, expected) in noted_chunks(noted) {
            let (data, after) = left.split_at_mut(chunk.len as usize);
            left = after;
            let found = read_chunk(key, target, noted.zone.file, &chunk, data)?;
            self.complete_chunk(key, target, noted.zone.file, &chunk, data, (expected, &found), changes)?;
        }
        Ok(whole)
    }

    /// Makes a chunk wholly new, in memory. `digests` are those of its old content, and those of what was found.
    #[expect(clippy::too_many_arguments, reason = "the parts of one step, which has one caller")]
    fn complete_chunk(
        &self,
        key: &JournalKey,
        target: &Target,
        file: u32,
        chunk: &Run,
        data: &mut [u8],
        digests: (&[u8], &[u8]),
        changes: Changes,
    ) -> Result<(), Error> {
        let is_old: Vec<bool> =
            digests.0.chunks(DIGEST_LEN).zip(digests.1.chunks(DIGEST_LEN)).map(|(a, b)| a == b).collect();
        if is_old.iter().all(|old| *old) {
            return target.step(self.direction, data, chunk.virtual_byte);
        }
        let before = Zeroizing::new(data.to_vec());
        // What is new already is put back to what it was in memory, so that a data unit of which storage took a part is whole again.
        let mut old = before.clone();
        target.inverse(self.direction, &mut old, chunk.virtual_byte)?;
        let mut undone = vec![0; digests.0.len()];
        key.digests(file, chunk.offset, &old, &mut Zeroizing::new(Vec::new()), &mut undone)?;
        let mut damaged = Vec::new();
        let unit_len = target.unit.bytes() as usize;
        for (index, unit) in old.chunks_mut(unit_len).enumerate() {
            let start = index * unit_len;
            for at in (start..start + unit.len()).step_by(PIECE_LEN) {
                let piece = at / PIECE_LEN;
                let within = at - start..unit.len().min(at - start + PIECE_LEN);
                let digest = piece * DIGEST_LEN..(piece + 1) * DIGEST_LEN;
                if is_old[piece] {
                    unit[within.clone()].copy_from_slice(&before[start + within.start..start + within.end]);
                } else if undone[digest.clone()] != digests.0[digest] {
                    damaged.push(at..at + within.len());
                }
            }
        }
        if let (Some(first), Changes::Keep) = (damaged.first(), changes) {
            let offset = chunk.offset + first.start as u64;
            return Err(Error::NeitherOldNorNew { path: target.path.to_string(), offset });
        }
        data.copy_from_slice(&old);
        target.step(self.direction, data, chunk.virtual_byte)?;
        for range in damaged {
            data[range.clone()].copy_from_slice(&before[range]);
        }
        Ok(())
    }

    /// Makes the new content of a zone durable. All of it is written, also what reads as it should: a sync that failed may have left that in the
    /// system's memory alone.
    fn put(&self, noted: &Noted, data: &[u8]) -> Result<(), Error> {
        let target = self.target(noted)?;
        let mut rest = data;
        for chunk in chunks(&noted.zone) {
            let (here, after) = rest.split_at(chunk.len as usize);
            rest = after;
            if !is_hole(target, &chunk, here)? {
                target.file.write_at(here, chunk.offset)?;
            }
        }
        target.file.sync()?;
        Ok(())
    }

    /// The first byte in its file at which a zone is not what it was when it was noted.
    fn first_change(&self, key: &JournalKey, noted: &Noted) -> Result<Option<u64>, Error> {
        let target = self.target(noted)?;
        for (chunk, expected) in noted_chunks(noted) {
            let mut data = Zeroizing::new(vec![0; chunk.len as usize]);
            let found = read_chunk(key, target, noted.zone.file, &chunk, &mut data)?;
            if let Some(piece) = found.chunks(DIGEST_LEN).zip(expected.chunks(DIGEST_LEN)).position(|(a, b)| a != b) {
                return Ok(Some(chunk.offset + (piece * PIECE_LEN) as u64));
            }
        }
        Ok(None)
    }
}

/// The chunks of a zone, each with the digests of its old content.
fn noted_chunks(noted: &Noted) -> impl Iterator<Item = (Run, &[u8])> {
    let mut digests = noted.digests.as_slice();
    chunks(&noted.zone).map(move |chunk| {
        let (expected, rest) = digests.split_at(digests_len(chunk.len as usize));
        digests = rest;
        (chunk, expected)
    })
}

/// Reads a chunk, and gives its digests.
fn read_chunk(key: &JournalKey, target: &Target, file: u32, chunk: &Run, data: &mut [u8]) -> Result<Vec<u8>, Error> {
    target.file.read_at(data, chunk.offset)?;
    let mut found = vec![0; digests_len(data.len())];
    key.digests(file, chunk.offset, data, &mut Zeroizing::new(Vec::new()), &mut found)?;
    Ok(found)
}

/// Whether zeros are already there as a hole, which stays one.
fn is_hole(target: &Target, chunk: &Run, data: &[u8]) -> Result<bool, Error> {
    if data.iter().any(|byte| *byte != 0) {
        return Ok(false);
    }
    Ok(target.file.next_data(chunk.offset)?.is_none_or(|found| found.start >= chunk.offset + chunk.len))
}

fn end(noted: &Noted) -> Frontier {
    Frontier { file: noted.zone.file, offset: noted.zone.end() }
}
