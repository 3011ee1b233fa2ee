//! The server is killed while clients write: what was flushed is there.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use crate::served::{Served, add_disk, disk, inside, peer, run_peer, text};
use crate::testing::TestVm;

/// Writes blocks of 48 KiB anywhere, each full of the number of its write; says `flushed N` when a flush that came after write N was answered. The flush goes
/// through another connection, and a write now and then has FUA instead.
const WRITER: &str = "
import random, sys
random.seed(SEED)
other = nbd.NBD()
other.connect_uri(URI)
number = FIRST
while True:
    for _ in range(random.randrange(1, 6)):
        number += 1
        place = random.randrange(0, 300) * 49152
        h.pwrite(number.to_bytes(8, 'big') * 6144, place)
        print('wrote', number, place)
    if random.random() < 0.5:
        other.flush()
    else:
        number += 1
        h.pwrite(number.to_bytes(8, 'big') * 6144, 299 * 49152)
        print('wrote', number, 299 * 49152)
        h.flush()
    print('flushed', number, 0)
    number += 1
    h.pwrite(number.to_bytes(8, 'big') * 6144, 7 * 49152, nbd.CMD_FLAG_FUA)
    print('fua', number, 7 * 49152, flush=True)
";

#[test]
fn what_was_flushed_survives_a_kill() {
    const BLOCK: usize = 48 << 10;
    for subformat in ["monolithicSparse", "monolithicFlat"] {
        let vm = TestVm::with_disks(&[]);
        add_disk(&vm, "data.vmdk", subformat, "16M");
        vm.ok(&["encrypt", "VM", "--provider", "house"]);
        // What each block held when it was durable last (a write that a kill tore leaves two numbers), and what it may hold besides.
        let mut durable = vec![vec![0u64]; 300];
        let mut possible: Vec<Vec<u64>> = vec![Vec::new(); 300];
        let mut last = 0;
        for round in 0..5u64 {
            let served = Served::socket(&vm, &[&disk(&vm, "data.vmdk")]);
            let script = WRITER
                .replace("SEED", &round.to_string())
                .replace("FIRST", &last.to_string())
                .replace("URI", &format!("'{}'", served.uri));
            let mut writer = peer("nbdsh", &["-u", &served.uri, "-c", &script]);
            let mut writer = writer.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
            // Some rounds of writes, however fast the machine is, and a moment in the middle of the next.
            let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines().map(Result::unwrap);
            let is_round = |line: &&String| line.starts_with("fua");
            let mut told: Vec<String> = Vec::new();
            while told.iter().filter(is_round).count() < 4 + 5 * round as usize {
                told.push(lines.next().unwrap_or_else(|| panic!("the writer ended")));
            }
            std::thread::sleep(Duration::from_millis(7 * round));
            served.kill();
            told.extend(lines);
            writer.wait().unwrap();
            let mut acknowledged = 0;
            for line in told {
                let words: Vec<&str> = line.split(' ').collect();
                let (number, block) = (words[1].parse::<u64>().unwrap(), words[2].parse::<usize>().unwrap() / BLOCK);
                last = number;
                match words[0] {
                    "wrote" => possible[block].push(number),
                    // This write is durable, and so is nothing else that was not before.
                    "fua" => {
                        durable[block] = vec![number];
                        possible[block].clear();
                    }
                    _ => {
                        acknowledged += 1;
                        for (durable, possible) in durable.iter_mut().zip(&mut possible) {
                            if let Some(last) = possible.last() {
                                *durable = vec![*last];
                            }
                            possible.clear();
                        }
                    }
                }
            }
            assert!(acknowledged > 3, "the writer got nowhere");
            vm.ok(&["verify", "VM"]);
            let served = Served::socket(&vm, &[&disk(&vm, "data.vmdk"), "--read-only"]);
            let raw = inside(&vm, "disk.raw");
            run_peer("nbdcopy", &[&served.uri, text(&raw)]);
            served.end();
            let bytes = std::fs::read(&raw).unwrap();
            let mut was_written = 0;
            for (block, content) in bytes.chunks(BLOCK).take(300).enumerate() {
                let numbers = content.chunks(8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
                for number in numbers {
                    // Up to a handful of writes had not been told of when the server died.
                    let known = durable[block].contains(&number) || possible[block].contains(&number);
                    assert!(known || number > last, "{subformat}, block {block}: {number}, not {:?}", durable[block]);
                    assert!(number <= last + 16, "{subformat}, block {block}: {number} was never written");
                }
                was_written += usize::from(durable[block] != [0]);
            }
            assert!(was_written > 3);
            last += 100;
            // The next round begins with what is there now.
            for (block, content) in bytes.chunks(BLOCK).take(300).enumerate() {
                durable[block] = content.chunks(8).map(|bytes| u64::from_be_bytes(bytes.try_into().unwrap())).collect();
                durable[block].dedup();
                possible[block].clear();
            }
        }
    }
}
