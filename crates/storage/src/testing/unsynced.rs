//! A file, what of it is durable, and what a crash leaves of the rest.

use core::ops::Range;
use std::sync::Arc;

use crate::memory::BLOCK_LEN;
use crate::testing::content::Content;
use crate::testing::faults::{SyncFailure, Tearing};
use crate::testing::random::Random;

/// What storage writes whole with [`Tearing::Sector`].
const SECTOR_LEN: u64 = 512;

#[derive(Clone, Debug, Default)]
pub(super) struct FileState {
    current: Content,
    durable: Content,
    changes: Vec<Change>,
    /// Whether `durable` with all `changes` is something else than `current`: a failed sync has lost some.
    apart: bool,
    version: u64,
    durable_version: u64,
    /// Handles that are open.
    pub(super) handle_count: usize,
}

#[derive(Clone, Debug)]
struct Change {
    range: Range<u64>,
    /// What was written; zeros where there is nothing.
    data: Option<Arc<[u8]>>,
    /// The length of the file then.
    len_bytes: u64,
}

impl FileState {
    pub(super) fn new(version: u64) -> Self {
        Self { version, durable_version: version, ..Self::default() }
    }

    pub(super) fn current(&self) -> &Content {
        &self.current
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Notes a change of what is known of the file.
    pub(super) fn touch(&mut self, version: u64) {
        self.version = version;
    }

    pub(super) fn write(&mut self, data: &[u8], offset: u64) {
        let range = offset..offset + data.len() as u64;
        self.current.put(data, offset);
        if range.end > self.current.len() {
            self.current.set_len(range.end);
        }
        self.note(range, Some(data.into()));
    }

    pub(super) fn set_len(&mut self, len_bytes: u64) {
        // What is cut off reads as zeros should the file grow again, and lies there in part should the crash keep the old length.
        let cut = len_bytes..self.current.len().max(len_bytes);
        self.current.set_len(len_bytes);
        self.note(cut, None);
    }

    pub(super) fn clear(&mut self, range: Range<u64>) {
        self.current.clear(&range);
        self.note(range, None);
    }

    fn note(&mut self, range: Range<u64>, data: Option<Arc<[u8]>>) {
        self.changes.push(Change { range, data, len_bytes: self.current.len() });
    }

    pub(super) fn sync(&mut self) {
        self.durable = self.all_kept();
        self.durable_version = self.version;
        self.changes.clear();
    }

    pub(super) fn fail_sync(&mut self, failure: SyncFailure, random: &mut Random, tearing: Tearing) {
        match failure {
            SyncFailure::Kept => self.sync(),
            SyncFailure::Lost => self.apart |= !self.changes.is_empty(),
            SyncFailure::Partial => {
                self.apart |= !self.changes.is_empty();
                self.durable = self.after_crash(random, tearing);
            }
        }
        self.changes.clear();
    }

    /// The power is cut.
    pub(super) fn crash(&mut self, random: &mut Random, tearing: Tearing) {
        self.durable = self.after_crash(random, tearing);
        if self.version != self.durable_version && random.half() {
            self.durable_version = self.version;
        }
        self.current = self.durable.clone();
        self.version = self.durable_version;
        self.changes.clear();
        self.apart = false;
        self.handle_count = 0;
    }

    /// Damages what is stored, which no version tells.
    pub(super) fn damage(&mut self, damage: impl Fn(&mut Content)) {
        damage(&mut self.current);
        damage(&mut self.durable);
        self.apart |= !self.changes.is_empty();
    }

    fn all_kept(&self) -> Content {
        if !self.apart {
            return self.current.clone();
        }
        let mut content = self.durable.clone();
        for change in &self.changes {
            change.apply(&mut content, &change.range);
        }
        content.set_len(self.changes.last().map_or(self.durable.len(), |change| change.len_bytes));
        content
    }

    /// What a crash may leave. The plain cases (nothing, everything, all up to a point) come often, since no chance would ever bring them about where many
    /// changes are unsynced.
    fn after_crash(&self, random: &mut Random, tearing: Tearing) -> Content {
        if self.changes.is_empty() {
            return self.durable.clone();
        }
        match random.below(8) {
            0 => self.durable.clone(),
            1 => self.all_kept(),
            2 | 3 => self.up_to_a_point(random, tearing),
            _ => self.scattered(random, tearing),
        }
    }

    /// Everything up to a point, and the change there torn.
    fn up_to_a_point(&self, random: &mut Random, tearing: Tearing) -> Content {
        let mut content = self.durable.clone();
        let kept = random.below(self.changes.len() as u64) as usize;
        for change in &self.changes[..kept] {
            change.apply(&mut content, &change.range);
        }
        self.changes[kept].tear(&mut content, random, tearing);
        let lens = [
            kept.checked_sub(1).map_or(self.durable.len(), |last| self.changes[last].len_bytes),
            self.changes[kept].len_bytes,
        ];
        content.set_len(lens[random.below(2) as usize]);
        content
    }

    /// Any changes, some torn, perhaps in another order, with any length that there has been.
    fn scattered(&self, random: &mut Random, tearing: Tearing) -> Content {
        let mut content = self.durable.clone();
        let mut order: Vec<&Change> = self.changes.iter().collect();
        if random.half() {
            random.shuffle(&mut order);
        }
        let share = random.below(257);
        for change in order {
            if random.below(256) >= share {
                continue;
            }
            if random.half() {
                change.apply(&mut content, &change.range);
            } else {
                change.tear(&mut content, random, tearing);
            }
        }
        content.set_len(match random.below(4) {
            0 => self.durable.len(),
            1 => self.current.len(),
            _ => self.changes[random.below(self.changes.len() as u64) as usize].len_bytes,
        });
        content
    }
}

impl Change {
    /// Does the part of the change that lies in `part`.
    fn apply(&self, content: &mut Content, part: &Range<u64>) {
        match &self.data {
            Some(data) => {
                let inside = part.start - self.range.start..part.end - self.range.start;
                content.put(&data[inside.start as usize..inside.end as usize], part.start);
            }
            None => content.clear(part),
        }
    }

    fn tear(&self, content: &mut Content, random: &mut Random, tearing: Tearing) {
        let reached = match self.data {
            Some(_) => vec![self.range.clone()],
            // Only what is no hole can be torn: a file may be far longer than what is in it.
            None => content
                .blocks_in(&self.range)
                .into_iter()
                .map(|block| self.range.start.max(block * BLOCK_LEN)..self.range.end.min((block + 1) * BLOCK_LEN))
                .collect(),
        };
        for range in reached {
            let mut at = range.start;
            while at < range.end {
                let end = range.end.min((at / SECTOR_LEN + 1) * SECTOR_LEN);
                if random.half() {
                    match tearing {
                        Tearing::Sector => self.apply(content, &(at..end)),
                        Tearing::Byte => self.tear_sector(content, at..end, random),
                    }
                }
                at = end;
            }
        }
    }

    fn tear_sector(&self, content: &mut Content, sector: Range<u64>, random: &mut Random) {
        let middle = sector.start + random.below(sector.end - sector.start + 1);
        match random.below(4) {
            0 => self.apply(content, &sector),
            1 => self.apply(content, &(sector.start..middle)),
            2 => self.apply(content, &(middle..sector.end)),
            _ => {
                for at in sector {
                    if random.half() {
                        self.apply(content, &(at..at + 1));
                    }
                }
            }
        }
    }
}
