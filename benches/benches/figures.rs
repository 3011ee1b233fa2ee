//! The tables of `docs/performance.md`: prints them, and writes them and the plot where `VMSEAL_WRITE_DOCS` is set.

use std::path::Path;

use vmseal_benches::figures::{Case, LENS, measure};
use vmseal_benches::peers::{Gcrypt, OpenSsl};
use vmseal_benches::report::{self, Figures};
use vmseal_xts::Kernel;

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("?", |(_, value)| value)
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} (family {}, model {}), {cores} cores", value("model name"), value("cpu family"), value("model\t"))
}

fn main() {
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned();
    let before = load();
    // On the border of a page, as buffers of a disk are.
    let mut bytes = vec![1; LENS[2] + 4096];
    let start = bytes.as_ptr().align_offset(4096);
    let buffer = &mut bytes[start..start + LENS[2]];
    let mut figures = Figures::new();
    for case in Case::all() {
        eprintln!("{case:?}");
        figures.insert(case, measure(case, buffer));
    }
    let mut tables = format!(
        "Processor: {}. Kernel chosen: {}. Peers: {}, AWS-LC (aws-lc-sys 0.47), libgcrypt {}, xts-mode 0.6 on aes 0.9. \
         Load average (`/proc/loadavg`) before: {before}; after: {}.\n\n",
        processor(),
        Kernel::detect().name(),
        OpenSsl::version(),
        Gcrypt::version(),
        load()
    );
    tables.push_str(&report::tables(&figures));
    println!("{tables}");
    if std::env::var_os("VMSEAL_WRITE_DOCS").is_some() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        let page = std::fs::read_to_string(docs.join("performance.md")).unwrap();
        let page = report::put_into_page(&page, &tables).expect("docs/performance.md has marks for the figures");
        std::fs::write(docs.join("performance.md"), page).unwrap();
        std::fs::write(docs.join("performance.svg"), report::plot(&figures)).unwrap();
    }
}
