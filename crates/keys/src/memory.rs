//! Memory for keys: slots in pages that are locked (not swapped), left out of core dumps, and wiped.
//!
//! A page holds 64 slots of 64 bytes, so that ten thousand KEKs need 160 locked pages. Pages are never given back: a
//! process that had many keys keeps some empty pages. Where the system allows no more locked memory (`ulimit -l`), further pages are
//! ordinary ones, still wiped and left out of dumps; where there are no pages at all, the heap.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize;

/// The bytes of a slot: the longest key is a DEK.
pub(crate) const SLOT_LEN: usize = 64;
const PAGE_LEN: usize = 4096;

static PAGES: Mutex<Vec<Page>> = Mutex::new(Vec::new());

struct Page {
    base: NonNull<u8>,
    /// A bit for each slot: 1 is taken.
    taken: u64,
}

// SAFETY: `base` is the start of a mapping that lives as long as the process; access to it goes through slots, each of which is
// handed out to one owner at a time under the lock of `PAGES`.
unsafe impl Send for Page {}

/// Memory of one key, all zero at first.
pub(crate) enum Slot {
    /// In a page of the pool.
    Page {
        /// Where its bytes are.
        bytes: NonNull<[u8; SLOT_LEN]>,
    },
    /// On the heap.
    Heap(Box<[u8; SLOT_LEN]>),
}

// SAFETY: a slot is the only owner of its bytes, like a Box: moving it to another thread, or sharing references to it, is sound.
unsafe impl Send for Slot {}
// SAFETY: as above; `&Slot` gives only `&[u8]`.
unsafe impl Sync for Slot {}

impl Slot {
    pub(crate) fn new() -> Self {
        let mut pages = pages();
        if let Some(slot) = pages.iter_mut().find_map(Page::take) {
            return slot;
        }
        if let Some(mut page) = Page::map() {
            let slot = page.take();
            pages.push(page);
            if let Some(slot) = slot {
                return slot;
            }
        }
        Self::Heap(Box::new([0; SLOT_LEN]))
    }

    pub(crate) fn bytes(&self) -> &[u8; SLOT_LEN] {
        match self {
            // SAFETY: the slot owns these bytes of a mapping that is never unmapped, and they are initialised (zeros at
            // first); the borrow of `self` keeps others from changing them.
            Self::Page { bytes } => unsafe { bytes.as_ref() },
            Self::Heap(bytes) => bytes,
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; SLOT_LEN] {
        match self {
            // SAFETY: as in `bytes`; the exclusive borrow of `self` makes this the only reference.
            Self::Page { bytes } => unsafe { bytes.as_mut() },
            Self::Heap(bytes) => bytes,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        if let Self::Page { bytes } = self {
            let address = bytes.as_ptr() as usize;
            if let Some(page) = pages().iter_mut().find(|page| page.index_of(address).is_some())
                && let Some(index) = page.index_of(address)
            {
                page.taken &= !(1 << index);
            }
        }
    }
}

/// A thread that panicked has left the list whole: each change of it is one assignment.
fn pages() -> MutexGuard<'static, Vec<Page>> {
    PAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Page {
    fn take(&mut self) -> Option<Slot> {
        let index = self.taken.trailing_ones() as usize;
        if index == PAGE_LEN / SLOT_LEN {
            return None;
        }
        self.taken |= 1 << index;
        // SAFETY: `index` is below the number of slots, so that the offset stays inside the page's mapping.
        let bytes = unsafe { self.base.add(index * SLOT_LEN) }.cast();
        Some(Slot::Page { bytes })
    }

    fn index_of(&self, address: usize) -> Option<usize> {
        let offset = address.checked_sub(self.base.as_ptr() as usize)?;
        (offset < PAGE_LEN).then_some(offset / SLOT_LEN)
    }

    #[cfg(unix)]
    fn map() -> Option<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mlock, mmap_anonymous};
        // SAFETY: a new private mapping at an address that the system chooses touches no existing memory.
        let base = unsafe {
            mmap_anonymous(core::ptr::null_mut(), PAGE_LEN, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }
        .ok()?;
        // Both are best effort: a system that refuses leaves an ordinary page.
        // SAFETY: the range is the mapping that was just made, and locking does not change its content.
        let _ = unsafe { mlock(base, PAGE_LEN) };
        #[cfg(target_os = "linux")]
        {
            // SAFETY: as above; leaving pages out of dumps does not change their content.
            let _ = unsafe { rustix::mm::madvise(base, PAGE_LEN, rustix::mm::Advice::LinuxDontDump) };
        }
        Some(Self { base: NonNull::new(base.cast())?, taken: 0 })
    }

    #[cfg(not(unix))]
    fn map() -> Option<Self> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_wiped_and_used_again() {
        let mut slot = Slot::new();
        slot.bytes_mut().fill(0x5a);
        let address = slot.bytes().as_ptr();
        drop(slot);
        // SAFETY: the page stays mapped for the life of the process; no other test of this process may own the slot for long, and
        // whoever does has bytes other than 0x5a.
        let after = unsafe { core::ptr::read_volatile(address) };
        assert_ne!(after, 0x5a);
    }

    #[test]
    fn slots_do_not_overlap_and_begin_as_zeros() {
        let mut slots: Vec<Slot> = (0..200).map(|_| Slot::new()).collect();
        for (index, slot) in slots.iter_mut().enumerate() {
            assert_eq!(slot.bytes(), &[0; SLOT_LEN]);
            slot.bytes_mut().fill(index as u8 + 1);
        }
        for (index, slot) in slots.iter().enumerate() {
            assert_eq!(slot.bytes(), &[index as u8 + 1; SLOT_LEN]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn key_pages_are_locked_and_left_out_of_dumps() {
        let slot = Slot::new();
        let address = slot.bytes().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let mut flags = None;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((start, end)) = range.split_once('-')
                && let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&address);
            } else if inside && line.starts_with("VmFlags:") {
                flags = Some(line.to_owned());
            }
        }
        let flags = flags.expect("the slot's mapping is listed");
        assert!(flags.contains(" lo") && flags.contains(" dd"), "{flags}");
    }
}
