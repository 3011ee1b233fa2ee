//! What `inspect` prints of files for people: a table of many, a block of one.

use vmseal::CatalogueEntry;

use crate::inspect_walk::Other;

/// Longer cells only move what follows in their own line.
const CELL_LEN_MAX: usize = 56;

/// A line of the table.
pub(crate) struct Row {
    name: String,
    what: String,
    encryption: &'static str,
    rest: String,
    note: Option<String>,
}

impl Row {
    pub(crate) fn of_entry(entry: &CatalogueEntry) -> Self {
        let rest = match &entry.error {
            Some(error) => format!("ERROR: {error}"),
            None => [&entry.method.clone().unwrap_or_default(), &ways(entry)]
                .into_iter()
                .filter(|text| !text.is_empty())
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join("; "),
        };
        let note = match (entry.can.join(", "), &entry.cannot) {
            (can, None) if can.is_empty() => None,
            (can, None) => Some(format!("vmseal can: {can}")),
            (can, Some(cannot)) if can.is_empty() => Some(format!("vmseal cannot {cannot}")),
            (can, Some(cannot)) => Some(format!("vmseal can: {can}; it cannot {cannot}")),
        };
        Self {
            name: one_line(&entry.name),
            what: one_line(&entry.description),
            encryption: encryption_word(entry),
            rest: one_line(&rest),
            note,
        }
    }

    pub(crate) fn of_other(name: &str, what: &Other) -> Self {
        let (encryption, rest) =
            if what.is_error { ("?", format!("ERROR: {}", what.text)) } else { ("-", String::new()) };
        let text = if what.is_error { "not inspected" } else { what.text.as_str() };
        Self { name: one_line(name), what: one_line(text), encryption, rest: one_line(&rest), note: None }
    }
}

/// Rows below one another, and what is true of several of them below all.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut notes: Vec<&str> = Vec::new();
    let cells: Vec<[String; 4]> = rows
        .iter()
        .map(|row| {
            let mark = row.note.as_deref().map(|note| {
                let index = notes.iter().position(|known| *known == note).unwrap_or_else(|| {
                    notes.push(note);
                    notes.len() - 1
                });
                format!(" ({})", index + 1)
            });
            let encryption = format!("{}{}", row.encryption, mark.unwrap_or_default());
            [row.name.clone(), row.what.clone(), encryption, row.rest.clone()]
        })
        .collect();
    let titles = ["FILE", "WHAT", "ENCRYPTED", "HOW, AND WHAT OPENS IT"].map(str::to_owned);
    let width = |column: usize| {
        let lens = core::iter::once(&titles).chain(&cells).map(|cells| cells[column].chars().count());
        lens.filter(|len| *len <= CELL_LEN_MAX).max().unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2)];
    let mut text = String::new();
    for cells in core::iter::once(&titles).chain(&cells) {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        line.push_str(&cells[3]);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for (index, note) in notes.iter().enumerate() {
        text.push_str(&format!("({}) {}\n", index + 1, one_line(note)));
    }
    text
}

/// What is known of one file, below its name.
pub(crate) fn block(entry: &CatalogueEntry, with_state: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("  {name:12}{}\n", one_line(value)));
        }
    };
    if with_state {
        line(
            "encrypted",
            match entry.encryption {
                "none" => "no",
                "unknown" => "unknown",
                "vmseal" => "yes, by vmseal",
                _ => "yes",
            },
        );
    }
    line("method", entry.method.as_deref().unwrap_or_default());
    line("opened by", &ways(entry));
    if let Some(disk) = entry.belongs_to.as_deref().filter(|disk| *disk != entry.name) {
        line("part of", disk);
    }
    line("vmseal can", &entry.can.join(", "));
    line("cannot", entry.cannot.as_deref().unwrap_or_default());
    text
}

fn encryption_word(entry: &CatalogueEntry) -> &'static str {
    match entry.encryption {
        "none" => "no",
        "unknown" => "?",
        "vmseal" => "vmseal",
        _ => "yes",
    }
}

fn ways(entry: &CatalogueEntry) -> String {
    entry.opened_by.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ")
}

/// Names come from files that anyone may have written: one of two lines would look like two files.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], "\u{fffd}")
}
