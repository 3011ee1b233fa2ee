//! A disk's content out of its virtual disk and into one: raw images, with holes, checked by digests, resumable, and in part.

mod digest_list;
mod export;
mod part;
mod range_map;

pub use digest_list::DigestList;
pub use export::{Export, Exported};
pub use range_map::{RangeMap, RangeState};
