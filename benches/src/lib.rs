//! vmseal against its peers: the same bytes in the same process and run. `README.md` has the command.

pub mod figures;
pub mod formats;
pub mod limits;
pub mod peers;
pub mod report;
