//! What a crash left of a conversion in place, and how it is mended.

use zeroize::Zeroizing;

use crate::error::Error;
use crate::in_place::{Pass, Target, chunks};
use crate::journal::{DIGEST_LEN, JournalFile, JournalKey, Noted, PIECE_LEN, Run, digests_len};
use crate::record::Frontier;

/// Where a pass goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// Everything before it is converted and durable.
    pub(crate) reached: Frontier,
    /// The number of the last slot.
    pub(crate) generation: u64,
}

/// What to do with 512 bytes that are neither their old content nor their new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// Stop and say where they are.
    Refuse,
    /// Leave them as they are.
    Accept,
}

impl Pass<'_> {
    /// Completes the zone that a crash cut off. `None` where no slot of this pass is there.
    pub(crate) fn recover(&self, journal: &JournalFile, damage: Damage) -> Result<Option<Recovered>, Error> {
        let slots = journal.read()?;
        let Some(newest) = slots.first() else { return Ok(None) };
        if let Some(data) = &newest.data {
            self.rewrite(&newest.current, data)?;
        } else {
            self.complete(journal.key(), &newest.current, damage)?;
        }
        let mut reached = end(&newest.current);
        if let Some(next) = &newest.next {
            let before_is_there = slots.get(1).is_some_and(|slot| slot.generation + 1 == newest.generation);
            if before_is_there || newest.data.is_some() {
                // The slot of the zone after it was never written, so that nothing of it can be new.
                self.check_untouched(journal.key(), next)?;
            } else {
                // That slot was cut off when it was written, and nothing of the zone is new; or it was damaged later.
                self.complete(journal.key(), next, damage)?;
                reached = end(next);
            }
        }
        Ok(Some(Recovered { reached, generation: newest.generation }))
    }

    fn target(&self, noted: &Noted) -> Result<&Target, Error> {
        let file = noted.zone.file as usize;
        self.targets.get(file).ok_or(Error::JournalDamaged { what: "it names an extent that the VM does not have" })
    }

    /// Converts what is still old of a zone.
    fn complete(&self, key: &JournalKey, noted: &Noted, damage: Damage) -> Result<(), Error> {
        let target = self.target(noted)?;
        let mut digests = noted.digests.as_slice();
        let mut scratch = Zeroizing::new(Vec::new());
        for chunk in chunks(&noted.zone) {
            let mut data = Zeroizing::new(vec![0; chunk.len as usize]);
            target.file.read_at(&mut data, chunk.offset)?;
            let (expected, rest) = digests.split_at(digests_len(data.len()));
            digests = rest;
            let mut found = vec![0; expected.len()];
            key.digests(noted.zone.file, chunk.offset, &data, &mut scratch, &mut found)?;
            if self.complete_chunk(key, target, noted.zone.file, &chunk, &mut data, (expected, &found), damage)? {
                target.file.write_at(&data, chunk.offset)?;
            }
        }
        target.file.sync()?;
        Ok(())
    }

    /// Makes a chunk wholly new, and says whether that changed it. `digests` are those of its old content, and those of what was found.
    #[expect(clippy::too_many_arguments, reason = "the parts of one step, which has one caller")]
    fn complete_chunk(
        &self,
        key: &JournalKey,
        target: &Target,
        file: u32,
        chunk: &Run,
        data: &mut [u8],
        digests: (&[u8], &[u8]),
        damage: Damage,
    ) -> Result<bool, Error> {
        let is_old: Vec<bool> =
            digests.0.chunks(DIGEST_LEN).zip(digests.1.chunks(DIGEST_LEN)).map(|(a, b)| a == b).collect();
        // What was never written is the same on both sides.
        let before = Zeroizing::new(data.to_vec());
        if is_old.iter().all(|old| *old) {
            target.step(self.direction, data, chunk.virtual_byte)?;
            return Ok(*before != *data);
        }
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
        if let (Some(first), Damage::Refuse) = (damaged.first(), damage) {
            let offset = chunk.offset + first.start as u64;
            return Err(Error::NeitherOldNorNew { path: target.path.to_string(), offset });
        }
        data.copy_from_slice(&old);
        target.step(self.direction, data, chunk.virtual_byte)?;
        for range in damaged {
            data[range.clone()].copy_from_slice(&before[range]);
        }
        Ok(*before != *data)
    }

    /// Writes the new content of a zone that the journal has.
    fn rewrite(&self, noted: &Noted, data: &[u8]) -> Result<(), Error> {
        let target = self.target(noted)?;
        let mut rest = data;
        for chunk in chunks(&noted.zone) {
            let (here, after) = rest.split_at(chunk.len as usize);
            rest = after;
            let mut found = Zeroizing::new(vec![0; here.len()]);
            target.file.read_at(&mut found, chunk.offset)?;
            // What is right already may be a hole, which stays one.
            if found.as_slice() != here {
                target.file.write_at(here, chunk.offset)?;
            }
        }
        target.file.sync()?;
        Ok(())
    }

    /// Refuses where something of a zone has changed that no slot speaks of: the journal is older than the data.
    fn check_untouched(&self, key: &JournalKey, noted: &Noted) -> Result<(), Error> {
        let target = self.target(noted)?;
        let mut digests = noted.digests.as_slice();
        let mut scratch = Zeroizing::new(Vec::new());
        for chunk in chunks(&noted.zone) {
            let mut data = Zeroizing::new(vec![0; chunk.len as usize]);
            target.file.read_at(&mut data, chunk.offset)?;
            let (expected, rest) = digests.split_at(digests_len(data.len()));
            digests = rest;
            let mut found = vec![0; expected.len()];
            key.digests(noted.zone.file, chunk.offset, &data, &mut scratch, &mut found)?;
            if let Some(piece) = found.chunks(DIGEST_LEN).zip(expected.chunks(DIGEST_LEN)).position(|(a, b)| a != b) {
                let offset = chunk.offset + (piece * PIECE_LEN) as u64;
                return Err(Error::JournalOutdated { path: target.path.to_string(), offset });
            }
        }
        Ok(())
    }
}

fn end(noted: &Noted) -> Frontier {
    Frontier { file: noted.zone.file, offset: noted.zone.end() }
}
