//! Where the parent of a disk may be.

/// The paths at which to look for the parent that a child names, in this order, each relative to the child's folder but
/// for one that begins with `/`. Whoever opens them decides whether such a path, or one with `..`, may be followed.
///
/// Beside the child first, so that a folder that was moved as a whole finds itself; then as it is written; then in the
/// neighbour of the child's folder that has the name of the parent's. Windows paths have `\`, and only the first and
/// the last apply.
pub fn candidates(hint: &str) -> Vec<String> {
    let is_windows = hint.contains('\\');
    let parts: Vec<&str> = hint.split(|character| character == '/' || is_windows && character == '\\').collect();
    let mut found = Vec::new();
    let mut add = |path: String| {
        if !path.is_empty() && !found.contains(&path) {
            found.push(path);
        }
    };
    let is_name = |part: &&&str| !matches!(**part, "" | "." | "..");
    let file = parts.last().filter(is_name);
    if let Some(file) = file {
        add((*file).to_owned());
    }
    if !is_windows {
        add(hint.to_owned());
    }
    if let (Some(file), Some(folder)) = (file, parts.iter().rev().nth(1).filter(is_name)) {
        add(format!("../{folder}/{file}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_hint_is_looked_for() {
        for (hint, wanted) in [
            ("vm.vmdk", &["vm.vmdk"][..]),
            ("/vmfs/volumes/1/master/m.vmdk", &["m.vmdk", "/vmfs/volumes/1/master/m.vmdk", "../master/m.vmdk"]),
            ("D:\\VMs\\master\\m.vmdk", &["m.vmdk", "../master/m.vmdk"]),
            ("../other/m.vmdk", &["m.vmdk", "../other/m.vmdk"]),
            ("..", &[".."]),
            ("", &[]),
        ] {
            assert_eq!(candidates(hint), wanted, "{hint}");
        }
    }
}
