//! `vmseal encrypt`, `decrypt`, `recrypt`, `resume` and `verify`.

use serde::Serialize;
use vmseal::{
    Disks, Ending, Journal, LocalDir, Operation, Outcome, ProviderName, Request, Strategy, UnitSize, Verified, Vm,
};

use crate::args::{
    self, Cli, ConvertArgs, DataUnit, DecryptArgs, EncryptArgs, RecryptArgs, ResumeArgs, RunArgs, VerifyArgs,
};
use crate::home;
use crate::keys;
use crate::output::Output;
use crate::plan_report::PlanReport;
use crate::progress::{Bar, catch_interrupts};
use crate::status::Failure;
use crate::vm_path::VmPath;

#[derive(Serialize)]
struct OutcomeReport {
    operation: String,
    ending: &'static str,
    files: Vec<String>,
}

#[derive(Serialize)]
struct VerifyReport {
    encrypted_disks: Vec<String>,
    plain_disks: Vec<String>,
    sealed_files: Vec<String>,
}

pub(crate) fn encrypt(cli: &Cli, args: &EncryptArgs, output: &mut Output) -> Result<(), Failure> {
    let provider = provider_name(&args.provider)?;
    let disks = match args.disks.as_str() {
        "all" => Disks::All,
        "none" => Disks::None,
        names => {
            let names: Vec<String> = names.split(',').map(|name| name.trim().to_owned()).collect();
            if names.iter().any(String::is_empty) {
                return Err(Failure::usage("--disks has an empty name; say `all`, `none`, or the names of disks"));
            }
            Disks::Only(names)
        }
    };
    let unit = match args.data_unit {
        DataUnit::B512 => UnitSize::B512,
        DataUnit::B4096 => UnitSize::B4096,
    };
    let request = converting(Request::encrypt(&provider).disks(disks).unit_size(unit), &args.convert);
    run(cli, &args.vmx, &request, Some(&provider), &args.run, output)
}

pub(crate) fn decrypt(cli: &Cli, args: &DecryptArgs, output: &mut Output) -> Result<(), Failure> {
    let mut request = converting(Request::decrypt(), &args.convert);
    if args.forget_detached {
        request = request.forget_detached();
    }
    run(cli, &args.vmx, &request, None, &args.run, output)
}

pub(crate) fn recrypt(cli: &Cli, args: &RecryptArgs, output: &mut Output) -> Result<(), Failure> {
    let provider = args.provider.as_deref().map(provider_name).transpose()?;
    let request = if args.deep { Request::deep_recrypt() } else { Request::shallow_recrypt() };
    let mut request = converting(request, &args.convert);
    if let Some(provider) = &provider {
        request = request.provider(provider);
    }
    if args.drop_recovery {
        request = request.drop_recovery();
    }
    run(cli, &args.vmx, &request, provider.as_ref(), &args.run, output)
}

pub(crate) fn resume(cli: &Cli, args: &ResumeArgs, output: &mut Output) -> Result<(), Failure> {
    let path = VmPath::new(&args.vmx)?;
    let storage = LocalDir::open(&path.folder)?;
    // A VM in the middle of its publication may not open as a whole: only the record is needed here.
    let vm = Vm::at(&storage, &path.name)?;
    let home = home::open_existing(cli, output)?;
    let pending = vm.pending()?;
    // What was not converted in place is undone without a key.
    let needs_keys = !args.rollback || pending.as_ref().is_some_and(|pending| pending.converting);
    let ids = pending.filter(|_| needs_keys).map(|pending| pending.key_ids).unwrap_or_default();
    let mut keys = keys::open(home.as_ref(), &args.keys, &ids, None)?;
    catch_interrupts()?;
    if args.rollback {
        return report(&vm.rollback(&mut keys, Bar::new(output))?, output);
    }
    let outcome = if args.discard_changes {
        vm.resume_discarding_changes(&mut keys, Bar::new(output))?
    } else {
        vm.resume(&mut keys, Bar::new(output))?
    };
    report(&outcome, output)
}

pub(crate) fn verify(cli: &Cli, args: &VerifyArgs, output: &mut Output) -> Result<(), Failure> {
    let path = VmPath::new(&args.vmx)?;
    let storage = LocalDir::open(&path.folder)?;
    let vm = Vm::open(&storage, &path.name)?;
    let home = home::open_existing(cli, output)?;
    let mut keys = keys::open(home.as_ref(), &args.keys, &keys::ids(&vm.inventory()?), None)?;
    let Verified { encrypted_disks, plain_disks, sealed_files, .. } = vm.verify(&mut keys)?;
    let mut text = String::new();
    for (files, state) in [
        (&encrypted_disks, "its key unwraps, and its extents are whole"),
        (&sealed_files, "its envelope opens"),
        (&plain_disks, "not encrypted; its extents are whole"),
    ] {
        for file in files {
            text.push_str(&format!("{file}: {state}\n"));
        }
    }
    text.push_str(if encrypted_disks.is_empty() && sealed_files.is_empty() {
        "Nothing is encrypted. Every disk is whole, nothing is pending."
    } else if plain_disks.is_empty() {
        "Verified: every key unwraps, every disk is whole, nothing is pending."
    } else {
        "Verified: every key unwraps, every disk is whole, nothing is pending. Disks in the clear are named above."
    });
    output.result(&VerifyReport { encrypted_disks, plain_disks, sealed_files }, &text)
}

/// Plans `request`, and does it unless only the plan is wanted.
fn run(
    cli: &Cli,
    vmx: &std::path::Path,
    request: &Request,
    provider: Option<&ProviderName>,
    args: &RunArgs,
    output: &mut Output,
) -> Result<(), Failure> {
    let path = VmPath::new(vmx)?;
    let storage = LocalDir::open(&path.folder)?;
    let vm = Vm::open(&storage, &path.name)?;
    let plan = vm.plan(request)?;
    if args.dry_run {
        let report = PlanReport::new(&plan);
        return output.result(&report, &report.to_string());
    }
    let home = home::open_existing(cli, output)?;
    let mut keys = keys::open(home.as_ref(), &args.keys, &keys::ids(&vm.inventory()?), provider)?;
    catch_interrupts()?;
    let outcome = vm.execute(plan, &mut keys, Bar::new(output))?;
    report(&outcome, output)?;
    if outcome.operation == Operation::Encrypt {
        for disk in vm.inspect()?.disks.iter().filter(|disk| disk.state.encryption == "none") {
            output.note(&format!("Still in the clear: {}", disk.path));
        }
    }
    Ok(())
}

/// A request with the options about how data is converted.
fn converting(request: Request, args: &ConvertArgs) -> Request {
    let strategy = match (args.strategy, args.journal) {
        (args::Strategy::Copy, _) => Strategy::Copy,
        (args::Strategy::InPlace, args::Journal::Data) => Strategy::InPlace(Journal::Data),
        (args::Strategy::InPlace, args::Journal::Digests) => Strategy::InPlace(Journal::Digests),
    };
    request.strategy(strategy).memory_bytes(args.memory << 20)
}

fn provider_name(text: &str) -> Result<ProviderName, Failure> {
    ProviderName::new(text).map_err(|error| Failure::usage(error.to_string()))
}

fn report(outcome: &Outcome, output: &mut Output) -> Result<(), Failure> {
    let (ending, text) = match outcome.ending {
        Ending::Done => ("done", format!("{} done.", outcome.operation)),
        Ending::Resumed => {
            ("resumed", format!("The interrupted {} went on where it stopped, and is done.", outcome.operation))
        }
        Ending::Completed => {
            ("completed", format!("The interrupted {} was already committed; it is complete now.", outcome.operation))
        }
        Ending::RolledBack => {
            ("rolled-back", format!("The interrupted {} is undone; the VM is as it was before.", outcome.operation))
        }
        _ => ("done", format!("{} ended.", outcome.operation)),
    };
    let mut lines = vec![text];
    lines.extend(outcome.files.iter().map(|file| format!("  {file} was replaced")));
    let report = OutcomeReport { operation: outcome.operation.to_string(), ending, files: outcome.files.clone() };
    output.result(&report, &lines.join("\n"))?;
    for disk in &outcome.detached {
        output.note(&format!("{disk} is not attached: its key is still wrapped under the KEK that it had. Keep that KEK, or attach the disk and recrypt again."));
    }
    if outcome.ending != Ending::RolledBack {
        match outcome.operation {
            Operation::ShallowRecrypt => output.note(
                "Older copies of the descriptors and the VMX, in backups for example, still open with the old KEK, and with them the data; only a deep recrypt changes the data's keys.",
            ),
            Operation::Encrypt => output.note(
                "What is encrypted is gone from the folder in the clear; the storage below may hold its bytes until it writes over them.",
            ),
            Operation::Decrypt => output.note("The VM is in the clear."),
            Operation::DeepRecrypt => {}
        }
    }
    Ok(())
}
