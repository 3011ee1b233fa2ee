//! A plan as `--dry-run` shows it.

use core::fmt;

use serde::Serialize;
use vmseal::{KekChange, Plan, Step, Strategy};

#[derive(Serialize)]
pub(crate) struct PlanReport {
    operation: String,
    vmx: String,
    kek: KekReport,
    steps: Vec<StepReport>,
    strategy: &'static str,
    convert_bytes: u64,
    room_bytes: u64,
    wrapped_key_count: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "change")]
enum KekReport {
    New { provider: String },
    Keep { key_id: String },
    Drop { key_ids: Vec<String> },
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
enum StepReport {
    ConvertDisk { path: String, from_encrypted: bool, to_encrypted: bool, bytes: u64 },
    RewrapDisk { path: String },
    ConvertFile { path: String, from_encrypted: bool, to_encrypted: bool, bytes: u64 },
    ReplaceVmx { path: String, to_encrypted: bool },
}

impl PlanReport {
    pub(crate) fn new(plan: &Plan) -> Self {
        let kek = match plan.kek() {
            KekChange::New { provider } => KekReport::New { provider: provider.to_string() },
            KekChange::Keep { key_id } => KekReport::Keep { key_id: key_id.to_string() },
            KekChange::Drop { key_ids } => {
                KekReport::Drop { key_ids: key_ids.iter().map(ToString::to_string).collect() }
            }
        };
        let step = |step: &Step| match step.clone() {
            Step::ConvertDisk { path, from_encrypted, to_encrypted, bytes } => {
                StepReport::ConvertDisk { path, from_encrypted, to_encrypted, bytes }
            }
            Step::RewrapDisk { path } => StepReport::RewrapDisk { path },
            Step::ConvertFile { path, from_sealed, to_sealed, bytes } => {
                StepReport::ConvertFile { path, from_encrypted: from_sealed, to_encrypted: to_sealed, bytes }
            }
            Step::ReplaceVmx { path, to_encrypted } => StepReport::ReplaceVmx { path, to_encrypted },
        };
        Self {
            operation: plan.operation().to_string(),
            vmx: plan.vmx().to_owned(),
            kek,
            steps: plan.steps().iter().map(step).collect(),
            strategy: match plan.strategy() {
                Strategy::Copy => "copy",
                Strategy::InPlace(_) => "in-place",
            },
            convert_bytes: plan.convert_bytes(),
            room_bytes: plan.room_bytes(),
            wrapped_key_count: plan.wrapped_key_count(),
        }
    }
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Plan: {} of {}", self.operation, self.vmx)?;
        match &self.kek {
            KekReport::New { provider } => writeln!(f, "  a new KEK from {provider}")?,
            KekReport::Keep { key_id } => writeln!(f, "  under the KEK that the VM has, {key_id}")?,
            KekReport::Drop { key_ids } => {
                writeln!(f, "  no KEK any more; not needed for this VM: {}", key_ids.join(", "))?
            }
        }
        for step in &self.steps {
            match step {
                StepReport::ConvertDisk { path, from_encrypted, to_encrypted, bytes } => {
                    writeln!(f, "  {} {path}, {bytes} bytes", verb(*from_encrypted, *to_encrypted))?;
                }
                StepReport::RewrapDisk { path } => writeln!(f, "  wrap the DEK of {path} anew")?,
                StepReport::ConvertFile { path, from_encrypted, to_encrypted, bytes } => {
                    writeln!(f, "  {} {path}, {bytes} bytes", verb(*from_encrypted, *to_encrypted))?;
                }
                StepReport::ReplaceVmx { path, to_encrypted: true } => {
                    writeln!(f, "  write {path} with a new encrypted bundle")?;
                }
                StepReport::ReplaceVmx { path, to_encrypted: false } => {
                    writeln!(f, "  write {path} without an encrypted bundle")?;
                }
            }
        }
        write!(
            f,
            "{} bytes are rewritten ({}), {} keys are wrapped; needs {} bytes of room meanwhile. Nothing was changed.",
            self.convert_bytes, self.strategy, self.wrapped_key_count, self.room_bytes
        )
    }
}

fn verb(from_encrypted: bool, to_encrypted: bool) -> &'static str {
    match (from_encrypted, to_encrypted) {
        (false, _) => "encrypt",
        (true, true) => "encrypt under a new key",
        (true, false) => "decrypt",
    }
}
