//! The tables of `docs/performance.md`: prints them, and writes them and the plot where `VMSEAL_WRITE_DOCS` is set. `-- formats` and `-- xts`
//! make the ones of that name only.

use std::path::{Path, PathBuf};

use vmseal_benches::figures::{Case, LENS, measure};
use vmseal_benches::formats;
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

fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Prints tables, and puts them into the page where that is asked for; tells whether it is.
fn publish(what: &str, tables: &str) -> bool {
    println!("{tables}");
    let write = std::env::var_os("VMSEAL_WRITE_DOCS").is_some();
    if write {
        let path = docs().join("performance.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let page = report::put_into_page(&page, what, tables).expect("docs/performance.md has marks for the figures");
        std::fs::write(path, page).unwrap();
    }
    write
}

fn xts() {
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
    if publish("figures", &tables) {
        std::fs::write(docs().join("performance.svg"), report::plot(&figures)).unwrap();
    }
}

fn formats() {
    let before = load();
    let tables = formats::tables();
    let after = load();
    let head = format!(
        "Processor: {}. Peers: {}, AWS-LC (aws-lc-rs 1.19), RustCrypto (aes-gcm 0.11). Load average before: {before}; after: {after}.\n\n",
        processor(),
        OpenSsl::version()
    );
    publish("figures of the formats", &(head + &tables));
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_asked = |name: &str| asked.is_empty() || asked.iter().any(|asked| asked == name);
    if is_asked("formats") {
        formats();
    }
    if is_asked("xts") {
        xts();
    }
}
