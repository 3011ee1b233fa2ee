//! Tables and the plot of `docs/performance.md`.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::figures::{Case, LENS, Operation, Results, UNIT_SIZES, limit_name};
use crate::limits::Width;

pub type Figures = BTreeMap<Case, Results>;

const PEERS: [&str; 4] = ["OpenSSL", "AWS-LC", "libgcrypt", "xts-mode"];

fn size(len: usize) -> String {
    if len >= 1 << 20 { format!("{} MiB", len >> 20) } else { format!("{} KiB", len >> 10) }
}

fn number(value: f64) -> String {
    if value.is_nan() { "-".into() } else { format!("{value:.2}") }
}

fn percent(value: f64) -> String {
    if value.is_nan() { "-".into() } else { format!("{:.1} %", value * 100.0) }
}

/// The limits of the machine, the table of ratios and shares, and the goals, as Markdown.
pub fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    limits(figures, &mut text);
    goals(figures, &mut text);
    ratios(figures, &mut text);
    text
}

fn limits(figures: &Figures, text: &mut String) {
    text.push_str("### Limits of this machine\n\n| | 1 thread GB/s | 2 threads GB/s |\n|---|---|---|\n");
    let case = |len, threads| Case { operation: Operation::Encrypt, len, unit_size: 4096, threads };
    for width in Width::ALL {
        let speed = |threads| number(figures[&case(LENS[0], threads)].speed(&limit_name(width)));
        let _ = writeln!(
            text,
            "| AES-256, 14 rounds in registers of {} bits | {} | {} |",
            width.bits(),
            speed(1),
            speed(2)
        );
    }
    for ahead in [0, 2048] {
        let speed = |threads| number(figures[&case(LENS[2], threads)].speed(&format!("memory, {ahead} ahead")));
        let how = if ahead == 0 { "no prefetch" } else { "prefetch" };
        let _ = writeln!(text, "| 256 MiB read and written in place, {how} | {} | {} |", speed(1), speed(2));
    }
}

fn goals(figures: &Figures, text: &mut String) {
    text.push_str("\n### Goals\n\n| goal | wanted | found | |\n|---|---|---|---|\n");
    let at = |operation, len, unit_size, threads| &figures[&Case { operation, len, unit_size, threads }];
    let mut row = |goal: String, wanted: f64, found: f64, share: bool| {
        let show = |value: f64| if share { percent(value) } else { format!("{value:.2} x") };
        let mark = if found >= wanted { "reached" } else { "not reached" };
        let _ = writeln!(text, "| {goal} | {} | {} | {mark} |", show(wanted), show(found));
    };
    for (unit_size, share, aws_lc, openssl) in [(512, 0.90, 1.7, 4.3), (4096, 0.92, 1.03, 2.3)] {
        let results = at(Operation::Encrypt, LENS[0], unit_size, 1);
        let speed = results.speed("vmseal");
        row(format!("{unit_size}-byte units, 64 KiB: share of the issue limit"), share, speed / results.limit(), true);
        row(format!("{unit_size}-byte units, 64 KiB: AWS-LC"), aws_lc, speed / results.speed("AWS-LC"), false);
        row(format!("{unit_size}-byte units, 64 KiB: OpenSSL"), openssl, speed / results.speed("OpenSSL"), false);
    }
    for unit_size in UNIT_SIZES {
        let results = at(Operation::Encrypt, LENS[2], unit_size, 1);
        let memory = results.speed("memory, 0 ahead").max(results.speed("memory, 2048 ahead"));
        let limit = results.limit().min(memory);
        row(
            format!("{unit_size}-byte units, 256 MiB: share of the lower limit"),
            0.8,
            results.speed("vmseal") / limit,
            true,
        );
        row(
            format!("{unit_size}-byte units, 256 MiB: best peer"),
            1.4,
            results.speed("vmseal") / results.best_peer(),
            false,
        );
    }
    for unit_size in UNIT_SIZES {
        let results = at(Operation::Encrypt, LENS[0], unit_size, 1);
        let found = results.speed("vmseal, one unit a call") / results.best_peer();
        row(format!("one unit of {unit_size} bytes a call: best peer"), 1.0, found, false);
    }
    for len in [LENS[0], LENS[2]] {
        for unit_size in UNIT_SIZES {
            let results = at(Operation::Transcrypt, len, unit_size, 1);
            let found = results.speed("vmseal") / (results.limit() / 2.0);
            row(
                format!("transcrypt, {unit_size}-byte units, {}: share of half the limit", size(len)),
                0.9,
                found,
                true,
            );
        }
    }
    for unit_size in UNIT_SIZES {
        let one = at(Operation::Encrypt, LENS[0], unit_size, 1).speed("vmseal");
        let two = at(Operation::Encrypt, LENS[0], unit_size, 2).speed("vmseal");
        row(format!("two threads, {unit_size}-byte units, 64 KiB each: one thread"), 1.9, two / one, false);
        let one = at(Operation::Encrypt, LENS[2], unit_size, 1).speed("vmseal");
        let two = at(Operation::Encrypt, LENS[2], unit_size, 2).speed("vmseal, in parallel");
        row(
            format!("`encrypt_units_parallel`, two threads, {unit_size}-byte units, 256 MiB: one thread"),
            1.9,
            two / one,
            false,
        );
    }
    for (kernel, wanted) in [("vaes-256", 1.7), ("aes-ni", 0.95), ("portable", 0.9)] {
        let results = at(Operation::Encrypt, LENS[0], 4096, 1);
        let found = results.speed(&format!("vmseal on {kernel}")) / results.speed("OpenSSL");
        row(format!("{kernel} forced, 4096-byte units, 64 KiB: OpenSSL"), wanted, found, false);
    }
}

fn ratios(figures: &Figures, text: &mut String) {
    text.push_str("\n### All cases\n\nSpeeds in GB/s; `x`: vmseal against that peer.\n\n");
    text.push_str("| operation | threads | buffer | unit | vmseal | of the limit | one unit a call");
    for peer in PEERS {
        let _ = write!(text, " | {peer} | x");
    }
    text.push_str(" |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n");
    for (case, results) in figures {
        let speed = results.speed("vmseal");
        let work = if case.operation == Operation::Transcrypt { 2.0 } else { 1.0 };
        let share = percent(speed * work / results.limit());
        let single = number(results.speed("vmseal, one unit a call"));
        let Case { operation, len, unit_size, threads } = case;
        let _ = write!(
            text,
            "| {operation} | {threads} | {} | {unit_size} | {} | {share} | {single}",
            size(*len),
            number(speed)
        );
        for peer in PEERS {
            let _ = write!(text, " | {} | {}", number(results.speed(peer)), number(speed / results.speed(peer)));
        }
        text.push_str(" |\n");
    }
}

/// Encryption on one thread: a group of bars for each buffer and unit, and a line for the limit.
pub fn plot(figures: &Figures) -> String {
    const COLOURS: [(&str, &str); 6] = [
        ("vmseal", "#0b6e4f"),
        ("vmseal, one unit a call", "#8fc1a9"),
        ("AWS-LC", "#d95f02"),
        ("libgcrypt", "#7570b3"),
        ("OpenSSL", "#666666"),
        ("xts-mode", "#bbbbbb"),
    ];
    let top = figures.values().map(Results::limit).fold(0.0, f64::max);
    let one: f64 = figures[&Case { operation: Operation::Encrypt, len: LENS[0], unit_size: 512, threads: 1 }].limit();
    let top = if one.is_nan() { top } else { one } * 1.15;
    let (width, height, left, base) = (920.0, 420.0, 50.0, 350.0);
    let y = |speed: f64| base - speed / top * 300.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"15\">XTS-AES-256, encryption in place, one thread, GB/s (line: issue limit of AES)</text>\n"
    );
    let mut mark = 0.0;
    while mark < top {
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {y:.1}H{end}\" stroke=\"#ddd\"/><text x=\"{x}\" y=\"{text:.1}\" text-anchor=\"end\">{mark}</text>",
            y = y(mark),
            end = width - 20.0,
            x = left - 6.0,
            text = y(mark) + 4.0
        );
        mark += 2.0;
    }
    let group = (width - left - 20.0) / 6.0;
    let groups = LENS.iter().flat_map(|len| UNIT_SIZES.map(|unit_size| (*len, unit_size)));
    for (index, (len, unit_size)) in groups.enumerate() {
        let results = &figures[&Case { operation: Operation::Encrypt, len, unit_size, threads: 1 }];
        let start = left + index as f64 * group + 8.0;
        for (bar, (name, colour)) in COLOURS.iter().enumerate() {
            let speed = results.speed(name);
            if speed.is_nan() {
                continue;
            }
            let x = start + bar as f64 * 21.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"18\" height=\"{:.1}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\" text-anchor=\"middle\">{speed:.1}</text>",
                y(speed),
                base - y(speed),
                x + 9.0,
                y(speed) - 3.0
            );
        }
        let limit = y(results.limit());
        let _ = writeln!(svg, "<path d=\"M{start:.1} {limit:.1}h126\" stroke=\"#c00\" stroke-dasharray=\"4 3\"/>");
        let middle = start + 63.0;
        let label = format!("{}, {unit_size}-byte units", size(len));
        let _ = writeln!(svg, "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>", base + 18.0);
    }
    for (index, (name, colour)) in COLOURS.iter().enumerate() {
        let x = left + index as f64 * 140.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"388\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"398\">{name}</text>",
            x + 17.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Puts `tables` between the marks of the page for figures of `what`.
pub fn put_into_page(page: &str, what: &str, tables: &str) -> Option<String> {
    let start = format!("<!-- {what}: written by the bench -->\n");
    let end = format!("<!-- end of {what} -->");
    let (before, rest) = page.split_once(&start)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{start}\n{tables}\n{end}{after}"))
}
