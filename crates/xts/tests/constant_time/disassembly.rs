//! Follows secrets through the instructions of a kernel.
//!
//! Whatever is read through a pointer is a secret (round keys, tweaks, data), except constants, the one structure that holds pointers and
//! a length, and what was public when it was put on the stack. A function must neither branch on a secret, nor form an address of one,
//! nor divide by one.

use std::collections::BTreeMap;

const PUBLIC: u8 = 0;
const SECRET: u8 = 1;
/// The address of the structure with the pointers and the length of the data.
const ARGUMENTS: u8 = 2;

pub(crate) struct Instruction {
    address: u64,
    pub(crate) mnemonic: String,
    pub(crate) operands: String,
}

pub(crate) struct Function {
    name: String,
    pub(crate) instructions: Vec<Instruction>,
}

/// The functions of `objdump`'s output whose names start with `prefix`.
pub(crate) fn functions(text: &str, prefix: &str) -> Vec<Function> {
    let mut found: Vec<Function> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if let Some((_, name)) = line.strip_suffix(">:").and_then(|line| line.split_once(" <")) {
            inside = name.starts_with(prefix);
            if inside {
                found.push(Function { name: name.into(), instructions: Vec::new() });
            }
        } else if inside && let Some((address, instruction)) = line.split_once(":\t") {
            let instruction = instruction.split(['#', '<']).next().unwrap_or("").trim();
            let instruction = ["data16 ", "cs ", "bnd ", "notrack ", "lock ", "rep "]
                .iter()
                .fold(instruction.to_owned(), |text, prefix| text.replace(prefix, ""));
            let (mnemonic, operands) = instruction.split_once(' ').unwrap_or((&instruction, ""));
            found.last_mut().unwrap().instructions.push(Instruction {
                address: u64::from_str_radix(address.trim(), 16).unwrap(),
                mnemonic: mnemonic.into(),
                operands: operands.trim().into(),
            });
        }
    }
    found
}

/// What is known before an instruction.
#[derive(Clone, Default, PartialEq)]
struct State {
    registers: BTreeMap<String, u8>,
    /// Words of the stack by register and distance; one that is missing was never written on the way here.
    stack: BTreeMap<(String, i64), u8>,
    flags: u8,
}

impl State {
    /// Joins what is known on another way here; whether that changed anything.
    fn join(&mut self, other: &Self) -> bool {
        let before = self.clone();
        for (register, label) in &other.registers {
            *self.registers.entry(register.clone()).or_default() |= label;
        }
        self.stack.retain(|slot, _| other.stack.contains_key(slot));
        for (slot, label) in &mut self.stack {
            *label |= other.stack[slot];
        }
        self.flags |= other.flags;
        *self != before
    }

    fn register(&self, name: &str) -> u8 {
        // A vector that nobody has written yet holds what an earlier function left in it.
        let name = whole(name);
        let unknown = if name.starts_with('v') { SECRET } else { PUBLIC };
        self.registers.get(&name).copied().unwrap_or(unknown)
    }
}

/// The whole register that a name is a part of: `r8d` of `r8`, `xmm3` of `v3`.
fn whole(name: &str) -> String {
    for vector in ["xmm", "ymm", "zmm"] {
        if let Some(number) = name.strip_prefix(vector) {
            return format!("v{number}");
        }
    }
    if name.starts_with('r') && name[1..].starts_with(|c: char| c.is_ascii_digit()) {
        return name.trim_end_matches(['d', 'w', 'b']).into();
    }
    let short = name.trim_start_matches(['r', 'e']);
    match short {
        "al" | "ah" | "ax" => "rax".into(),
        "bl" | "bh" | "bx" => "rbx".into(),
        "cl" | "ch" | "cx" => "rcx".into(),
        "dl" | "dh" | "dx" => "rdx".into(),
        "sil" | "si" => "rsi".into(),
        "dil" | "di" => "rdi".into(),
        "bpl" | "bp" => "rbp".into(),
        "spl" | "sp" => "rsp".into(),
        _ => name.into(),
    }
}

enum Operand {
    Register(String),
    /// Registers of the address, its distance, and how many bytes lie there (0: not said).
    Memory(Vec<String>, i64, i64),
    Other,
}

fn operands(text: &str) -> Vec<Operand> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for character in text.chars() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().unwrap().push(character);
    }
    parts.iter().map(|part| operand(part.trim())).collect()
}

fn operand(text: &str) -> Operand {
    let bare = text.split('{').next().unwrap_or("").trim();
    let Some((size, address)) = bare.split_once('[') else {
        let register = bare.starts_with(|c: char| c.is_ascii_lowercase()) && !bare.contains(' ');
        return if register { Operand::Register(bare.into()) } else { Operand::Other };
    };
    let len = [("ZMMWORD", 64), ("YMMWORD", 32), ("XMMWORD", 16), ("QWORD", 8), ("DWORD", 4), ("WORD", 2), ("BYTE", 1)]
        .iter()
        .find(|(name, _)| size.contains(name))
        .map_or(0, |(_, len)| *len);
    let (mut registers, mut distance) = (Vec::new(), 0);
    for term in address.trim_end_matches(']').replace('-', "+-").split('+').filter(|term| !term.is_empty()) {
        let (sign, digits) = term.strip_prefix('-').map_or((1, term), |digits| (-1, digits));
        match digits.strip_prefix("0x") {
            // A distance before `rip` is printed as a large number.
            Some(hexadecimal) => distance = sign * u64::from_str_radix(hexadecimal, 16).unwrap() as i64,
            None => registers.push(digits.split('*').next().unwrap().into()),
        }
    }
    Operand::Memory(registers, distance, len)
}

/// Checks a function; returns at how many places a secret stands in a general register.
pub(crate) fn check(function: &Function) -> usize {
    let lines = &function.instructions;
    let at: BTreeMap<u64, usize> = lines.iter().enumerate().map(|(index, line)| (line.address, index)).collect();
    let name = function.name.rsplit("::").find(|part| !part.starts_with('h') && !part.starts_with('{')).unwrap_or("");
    let mut start = State::default();
    match name.split('<').next().unwrap_or("") {
        // (keys, first_unit: two registers, tweaks: pointer and length)
        "encrypt_tweaks" => {}
        // (keys, data by its address, unit_size, tweaks: pointer and length, ahead)
        "process" => {
            start.registers.insert("rsi".into(), ARGUMENTS);
        }
        _ => panic!("{}: say here which of its arguments are secrets", function.name),
    }
    let mut states: Vec<Option<State>> = lines.iter().map(|_| None).collect();
    states[0] = Some(start);
    let mut todo = vec![0];
    let mut secrets = 0;
    while let Some(index) = todo.pop() {
        let line = &lines[index];
        let mut state = states[index].clone().unwrap();
        step(function, line, &mut state);
        let jump = line.mnemonic.starts_with('j');
        let mut next = Vec::new();
        if jump {
            match u64::from_str_radix(line.operands.trim(), 16).map(|target| at.get(&target)) {
                Ok(Some(target)) => next.push(*target),
                // A call at the end of a function.
                Ok(None) if line.mnemonic == "jmp" => {}
                _ => panic!("{}: a jump to {}", function.name, line.operands),
            }
        }
        if !matches!(line.mnemonic.as_str(), "jmp" | "ret" | "ud2") && index + 1 < lines.len() {
            next.push(index + 1);
        }
        for target in next {
            let changed = match &mut states[target] {
                Some(known) => known.join(&state),
                none => {
                    *none = Some(state.clone());
                    true
                }
            };
            if changed {
                todo.push(target);
            }
        }
    }
    for state in states.iter().flatten() {
        secrets +=
            usize::from(state.registers.iter().any(|(name, label)| name.starts_with('r') && label & SECRET != 0));
    }
    secrets
}

fn step(function: &Function, line: &Instruction, state: &mut State) {
    let place = || format!("{}: {:x}: {} {}", function.name, line.address, line.mnemonic, line.operands);
    let mnemonic = line.mnemonic.as_str();
    if mnemonic.starts_with('j') {
        assert!(mnemonic == "jmp" || state.flags & SECRET == 0, "a branch on a secret: {}", place());
        return;
    }
    if mnemonic == "call" {
        // Through the table of imports, at once or from a register: `memset`, which wipes, and `memcpy`.
        let through = line.operands.contains('[') && !line.operands.contains("[rip");
        let secret = line.operands.starts_with('r') && state.register(&line.operands) & SECRET != 0;
        assert!(!through && !secret, "a call through a secret: {}", place());
        for register in ["rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"] {
            state.registers.remove(register);
        }
        state.flags = PUBLIC;
        return;
    }
    if mnemonic.starts_with("nop") || mnemonic == "endbr64" || mnemonic.starts_with("prefetch") {
        return;
    }
    let operands = operands(&line.operands);
    let is_lea = mnemonic == "lea";
    let mut labels = Vec::new();
    for operand in &operands {
        labels.push(match operand {
            Operand::Register(name) => state.register(name),
            Operand::Other => PUBLIC,
            Operand::Memory(registers, distance, len) => {
                let address = registers.iter().fold(PUBLIC, |label, register| label | state.register(register));
                let vector = registers.iter().any(|register| register.contains("mm"));
                assert!(is_lea || (address & SECRET == 0 && !vector), "an address of a secret: {}", place());
                let first = registers.first().map_or("", String::as_str);
                if is_lea {
                    address
                } else if first == "rip" || address & ARGUMENTS != 0 {
                    PUBLIC
                } else if registers.len() == 1 && matches!(first, "rsp" | "rbp") {
                    let words = (0..(*len).max(8) / 8).map(|word| (first.to_owned(), distance + word * 8));
                    words.map(|word| state.stack.get(&word).copied().unwrap_or(SECRET)).fold(PUBLIC, |a, b| a | b)
                } else {
                    SECRET
                }
            }
        });
    }
    assert!(
        !(mnemonic.starts_with("div") || mnemonic.starts_with("idiv")) || labels[0] & SECRET == 0,
        "a division by a secret: {}",
        place()
    );
    let all = labels.iter().fold(PUBLIC, |a, b| a | b);
    let compares = ["cmp", "test", "bt", "vptest", "ptest", "kortest", "ktest", "ucomis", "vucomis"];
    if compares.iter().any(|name| mnemonic.starts_with(name)) && !mnemonic.starts_with("bts") {
        state.flags = all;
        return;
    }
    let same = operands.len() >= 2
        && operands[operands.len() - 2..]
            .iter()
            .map(|operand| if let Operand::Register(name) = operand { name.as_str() } else { "" })
            .collect::<Vec<_>>()
            .windows(2)
            .all(|pair| pair[0] == pair[1] && !pair[0].is_empty());
    let moves = mnemonic.contains("mov") && !mnemonic.starts_with("cmov")
        || is_lea
        || mnemonic == "pop"
        || mnemonic.contains("broadcast");
    let value = if mnemonic == "pop" || mnemonic.contains("xor") && same {
        PUBLIC
    } else if mnemonic.starts_with("set") {
        state.flags
    } else if moves || (mnemonic.starts_with('v') && operands.len() > 2) {
        labels[1..].iter().fold(PUBLIC, |a, b| a | b)
    } else if ["adc", "sbb", "cmov", "rcl", "rcr"].iter().any(|name| mnemonic.starts_with(name)) {
        all | state.flags
    } else {
        all
    };
    let arithmetic =
        ["add", "sub", "and", "or", "xor", "inc", "dec", "neg", "sh", "sa", "adc", "sbb", "ro", "imul", "mul"];
    if arithmetic.iter().any(|name| mnemonic.starts_with(name)) {
        state.flags = value;
    }
    if mnemonic == "push" {
        return;
    }
    match operands.first() {
        Some(Operand::Register(name)) => {
            state.registers.insert(whole(name), value);
        }
        Some(Operand::Memory(registers, distance, len))
            if registers.len() == 1 && matches!(registers[0].as_str(), "rsp" | "rbp") =>
        {
            for word in 0..(*len).max(8) / 8 {
                state.stack.insert((registers[0].clone(), distance + word * 8), value);
            }
        }
        _ => {}
    }
}
