//! The snapshot list of `tests/vectors/vmdk`.

use serde_json::{Value, json};
use vmseal_formats::{Dictionary, SnapshotList};

use crate::cases::Vectors;

#[test]
fn every_snapshot_list_says_what_was_written_into_it() {
    let vectors = Vectors::of("vmdk");
    let [case] = vectors.cases("vmsd") else { panic!("one list") };
    let list = SnapshotList::parse(&Dictionary::parse(&vectors.file(case))).unwrap();
    let snapshots: Vec<Value> = list
        .snapshots
        .iter()
        .map(|snapshot| {
            let disks: Vec<_> = snapshot.disks.iter().map(|disk| json!([disk.node, disk.file])).collect();
            json!({
                "index": snapshot.index, "uid": snapshot.uid, "parent": snapshot.parent_uid, "file": snapshot.file,
                "display_name": snapshot.display_name, "description": snapshot.description, "type": snapshot.kind,
                "create_time_us": snapshot.created_us, "disks": disks
            })
        })
        .collect();
    let found = json!({
        "last_uid": list.last_uid, "current": list.current_uid, "num_snapshots": list.snapshots.len(), "snapshots": snapshots
    });
    assert_eq!(found, case["expect"]);
    assert_eq!(list.problems, []);
    assert_eq!(list.ancestry(2).map(|snapshot| snapshot.uid).collect::<Vec<_>>(), [2, 1]);
}
