//! What an edit changed, line by line.

/// Texts with more changed lines than this are told as wholly replaced.
const LINES_MAX: usize = 2000;

/// The lines that went, with `-`, and those that came, with `+`. Values that are secrets are left out.
pub(crate) fn of(before: &[u8], after: &[u8]) -> String {
    let (before, after) = (lines(before), lines(after));
    let start = before.iter().zip(&after).take_while(|(old, new)| old == new).count();
    let (old, new) = (&before[start..], &after[start..]);
    let end = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    let mut text = String::new();
    let mut tell = |sign: char, line: &str| {
        text.push_str(&format!("{sign} {}\n", shown(line)));
    };
    if old.len().max(new.len()) > LINES_MAX {
        old.iter().for_each(|line| tell('-', line));
        new.iter().for_each(|line| tell('+', line));
        return text;
    }
    // The longest common subsequence: its length from each pair of places to the ends.
    let width = new.len() + 1;
    let mut common = vec![0_u16; (old.len() + 1) * width];
    for at in (0..old.len()).rev() {
        for other in (0..new.len()).rev() {
            common[at * width + other] = match old[at] == new[other] {
                true => common[(at + 1) * width + other + 1] + 1,
                false => common[(at + 1) * width + other].max(common[at * width + other + 1]),
            };
        }
    }
    let (mut at, mut other) = (0, 0);
    while at < old.len() || other < new.len() {
        let goes =
            other == new.len() || at < old.len() && common[(at + 1) * width + other] >= common[at * width + other + 1];
        match (old.get(at), new.get(other)) {
            (Some(old), Some(new)) if old == new => (at, other) = (at + 1, other + 1),
            (Some(old), _) if goes => {
                tell('-', old);
                at += 1;
            }
            (_, new) => {
                tell('+', new.map_or("", String::as_str));
                other += 1;
            }
        }
    }
    text
}

fn lines(text: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(text).lines().map(|line| line.trim_end().to_owned()).collect()
}

/// A line without its value where that is a key or a password.
fn shown(line: &str) -> String {
    let Some((name, _)) = line.split_once('=') else { return line.to_owned() };
    let lower = name.to_ascii_lowercase();
    let is_secret = ["key", "password", "passphrase", "secret"].iter().any(|word| lower.contains(word));
    if is_secret { format!("{}= (not shown)", name) } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_lines_alone_are_told_and_no_secret() {
        for (before, after, told) in [
            ("a\nb\nc\n", "a\nB\nc\n", "- b\n+ B\n"),
            ("a\nb\nc\n", "a\nb\nc\nd\n", "+ d\n"),
            ("a\nb\nc\n", "b\n", "- a\n- c\n"),
            ("a\nb\nc\nd\n", "x\nb\nd\ny\n", "- a\n+ x\n- c\n+ y\n"),
            ("", "", ""),
            (
                "remote.key = \"s\"\n",
                "remote.key = \"t\"\n",
                "- remote.key = (not shown)\n+ remote.key = (not shown)\n",
            ),
        ] {
            assert_eq!(of(before.as_bytes(), after.as_bytes()), told, "{before:?} {after:?}");
        }
    }
}
