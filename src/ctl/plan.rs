//! Plans: what an operation would do, shown, kept in a file, and applied later if nothing has changed by then.
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::exit::{self, CtlError};
use super::op_args::OpStart;
use super::ops::{Begin, ask, start_op, unexpected, watch};
use super::output::{size, span, timestamp};
use super::{Ended, Environment};
use crate::client::Client;
use crate::protocol::id::{NodeId, RequestId};
use crate::protocol::op::{Goal, Pace};
use crate::protocol::operator::{PlanTolerance, PlanView, Question, Told};
use crate::protocol::request::{Request, Response};

/// Verbs on plan files.
#[derive(Debug, Clone, Subcommand)]
pub enum PlanCommand {
    /// What a plan file says; asks no cluster
    Show {
        /// The file, as written by --plan-out
        file: PathBuf,
    },
    /// Whether it can still be applied, and what has changed if not
    Check {
        /// The file, as written by --plan-out
        file: PathBuf,
    },
    /// What the same plan would be if it were made now
    Diff {
        /// The file, as written by --plan-out
        file: PathBuf,
    },
    /// Do what it says, if the cluster is as it was when the plan was made
    Apply {
        /// The file, as written by --plan-out
        file: PathBuf,
        /// Start it and return at once
        #[arg(long)]
        no_wait: bool,
        /// Stop watching after this long, with exit 8; the operation goes on
        #[arg(long, value_parser = super::args::span, value_name = "SPAN")]
        wait_for: Option<std::time::Duration>,
        /// Where there is no way back: the node's name once more
        #[arg(long, value_name = "NAME")]
        confirm: Option<String>,
    },
}

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PlanFile {
    schema: String,
    /// The cluster it was made for, by its id.
    cluster: String,
    because: String,
    plan: PlanView,
    /// Of everything else in it: whoever edits a plan by hand is to make a new one instead.
    checksum: String,
}

const SCHEMA: &str = "isx.plan/1";

impl PlanFile {
    fn new(cluster: String, because: &str, plan: PlanView) -> Self {
        let mut file = Self {
            schema: SCHEMA.to_owned(),
            cluster,
            because: because.to_owned(),
            plan,
            checksum: String::new(),
        };
        file.checksum = file.sum();
        file
    }

    fn digest(&self) -> ring::digest::Digest {
        let bare = Self {
            checksum: String::new(),
            ..self.clone()
        };
        let text = serde_json::to_vec(&bare).unwrap_or_default();
        ring::digest::digest(&ring::digest::SHA256, &text)
    }

    fn sum(&self) -> String {
        let hex: String = self
            .digest()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("sha256:{hex}")
    }

    /// A plan is applied once, however often it is told to.
    fn request(&self) -> RequestId {
        let digest = self.digest();
        RequestId(u128::from_be_bytes(*digest.as_ref().first_chunk().expect("32 bytes")))
    }

    fn read(path: &Path) -> Result<Self, CtlError> {
        let bad = |why: String| {
            let text = format!("`{}` is no plan that can be used: {why}", path.display());
            CtlError::new(exit::INVALID, text).next("the command that it came from, again, with --plan-out")
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            let text = format!("cannot read the plan `{}`: {error}", path.display());
            CtlError::new(exit::USAGE, text)
        })?;
        let value: Value = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        match value["schema"].as_str() {
            Some(SCHEMA) => {}
            Some(other) => return Err(bad(format!("its schema is {other}, this isxctl reads {SCHEMA}"))),
            None => return Err(bad("it names no schema".to_owned())),
        }
        let file: Self = serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
        if file.checksum != file.sum() {
            return Err(bad("its checksum does not fit: it was changed or cut short".to_owned()));
        }
        Ok(file)
    }

    fn write(&self, path: &Path) -> Result<(), CtlError> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default() + "\n";
        std::fs::write(path, text).map_err(|error| {
            let text = format!("cannot write the plan to `{}`: {error}", path.display());
            CtlError::new(exit::USAGE, text)
        })
    }
}

pub(super) async fn run(env: &Environment, command: PlanCommand) -> Ended {
    match command {
        PlanCommand::Show { file } => {
            let file = PlanFile::read(&file)?;
            show(env, &file.plan)
        }
        PlanCommand::Check { file: path } => {
            let file = PlanFile::read(&path)?;
            let client = connect(env, &file).await?;
            let at = Some(file.plan.config_epoch);
            let plan = make(&client, file.plan.goal.clone(), Some(file.plan.pace), at)
                .await
                .map_err(|error| again(error, &path, "diff"))?;
            if env.format().is_json() {
                let value = json!({"schema": "isx.plan.check/1", "applicable": true, "configEpoch": plan.config_epoch});
                return env.print_json(&value);
            }
            env.print(&format!(
                "{} can be applied: the cluster is at epoch {} as when it was made\n",
                file.plan.goal, plan.config_epoch
            ))
        }
        PlanCommand::Diff { file: path } => {
            let file = PlanFile::read(&path)?;
            let client = connect(env, &file).await?;
            let now = make(&client, file.plan.goal.clone(), Some(file.plan.pace), None).await?;
            diff(env, &file.plan, &now)
        }
        PlanCommand::Apply {
            file: path,
            no_wait,
            wait_for,
            confirm,
        } => {
            let file = PlanFile::read(&path)?;
            let client = connect(env, &file).await?;
            let goal = &file.plan.goal;
            let at = Some(file.plan.config_epoch);
            let before = super::ops::ops(&client, true).await?;
            let known = before.iter().find(|shown| shown.op.request == file.request());
            if let Some(known) = known {
                // Applied before: whoever comes again watches, or hears how it ended.
                return watch(env, &client, known.op.id, wait_for, true, None).await;
            }
            // What is stale is refused before anybody is asked for consent.
            let checked = make(&client, goal.clone(), Some(file.plan.pace), at).await;
            checked.map_err(|error| again(error, &path, "check"))?;
            match goal {
                Goal::Leave { node } | Goal::Replace { old: node, .. } => {
                    let name = name_of(&client, *node);
                    super::ops::severe(env, &format!("{goal} for good"), &name, confirm.as_deref())?;
                }
                goal => env.consent(&goal.to_string())?,
            }
            let begin = Begin {
                at,
                id: Some(file.request()),
                ..Begin::default()
            };
            let op = start_op(&client, goal.clone(), Some(file.plan.pace), &file.because, begin)
                .await
                .map_err(|error| again(error, &path, "check"))?;
            if no_wait {
                return env.print(&format!("{op}  {goal}  started\n"));
            }
            watch(env, &client, op, wait_for, true, Some(file.plan.undo.clone())).await
        }
    }
}

async fn connect(env: &Environment, file: &PlanFile) -> Result<Client, CtlError> {
    let client = env.connect().await?;
    let here = client.cluster().to_string();
    if here != file.cluster {
        let text = format!("the plan is for the cluster {}, this is {here}", file.cluster);
        return Err(CtlError::new(exit::CONFLICT, text).next("isxctl context list"));
    }
    Ok(client)
}

fn name_of(client: &Client, node: NodeId) -> String {
    let map = client.cached_map();
    let known = map.nodes.iter().find(|known| known.id == node);
    known.map_or_else(|| node.to_string(), |known| known.name.clone())
}

/// The error with what to do about the file.
fn again(mut error: CtlError, path: &Path, verb: &str) -> CtlError {
    if error.code == Some(crate::protocol::error::Code::StalePlan) {
        error.next = vec![format!("isxctl plan {verb} {}", path.display())];
    }
    error
}

/// Asks the directory's leader for a plan.
pub(super) async fn make(
    client: &Client,
    goal: Goal,
    pace: Option<Pace>,
    at: Option<u64>,
) -> Result<PlanView, CtlError> {
    let question = Question::Plan { goal, pace, at };
    match ask(client, Request::Question(question)).await? {
        Response::Told(told) => match *told {
            Told::Plan(plan) => Ok(*plan),
            _ => Err(unexpected()),
        },
        _ => Err(unexpected()),
    }
}

/// Shows a plan instead of carrying it out, or writes it to a file.
pub(super) async fn instead(env: &Environment, client: &Client, goal: Goal, start: &OpStart) -> Ended {
    let plan = make(client, goal, start.pace.map(Into::into), None).await?;
    let Some(path) = &start.plan_out else {
        let ended = show(env, &plan)?;
        env.say("dry run: nothing was changed");
        return Ok(ended);
    };
    let epoch = plan.config_epoch;
    PlanFile::new(client.cluster().to_string(), &start.because, plan.clone()).write(path)?;
    let ended = show(env, &plan)?;
    env.say(&format!(
        "plan written to {}   (valid while the cluster is at epoch {epoch})",
        path.display()
    ));
    env.say(&format!("apply  isxctl plan apply {}", path.display()));
    Ok(ended)
}

fn plan_json(plan: &PlanView) -> Value {
    let mut value = serde_json::to_value(plan).unwrap_or_default();
    value["schema"] = SCHEMA.into();
    value
}

/// As a person reads it.
pub(super) fn show(env: &Environment, plan: &PlanView) -> Ended {
    if env.format().is_json() {
        return env.print_json(&plan_json(plan));
    }
    env.print(&text(plan))
}

fn lines(plan: &PlanView) -> Vec<(&'static str, String)> {
    let (before, lowest, after) = plan.tolerance;
    let per = |of: fn(&PlanTolerance) -> u32| {
        format!(
            "{} before, {} at the lowest, {} afterwards",
            of(&before),
            of(&lowest),
            of(&after)
        )
    };
    let mut lines = vec![
        ("steps", plan.steps_total.to_string()),
        ("bytes", format!("{} over the network", size(plan.bytes))),
    ];
    for disk in plan.disks.iter().filter(|disk| disk.total > 0) {
        let percent = |used: u64| (u128::from(used) * 100).div_ceil(u128::from(disk.total));
        lines.push((
            "disk",
            format!(
                "{}  {} % at its fullest, {} % afterwards, of {}",
                disk.node,
                percent(disk.peak),
                percent(disk.after),
                size(disk.total)
            ),
        ));
    }
    lines.push(("tolerance", format!("nodes that may be lost: {}", per(|t| t.nodes))));
    lines.push(("", format!("zones that may be lost: {}", per(|t| t.zones))));
    lines.push((
        "time",
        format!("{}-{}", span(plan.time_s.0 * 1000), span(plan.time_s.1 * 1000)),
    ));
    lines.push(("no return", plan.no_return.clone()));
    lines.push(("undo", plan.undo.clone()));
    lines
}

fn text(plan: &PlanView) -> String {
    let mut text = format!(
        "{}   plan for epoch {}   pace {}   made {}\n",
        plan.goal,
        plan.config_epoch,
        plan.pace,
        timestamp(plan.made_ms)
    );
    for (name, value) in lines(plan) {
        text += &format!("{name:9} {value}\n");
    }
    for step in plan.steps.iter().take(STEPS_SHOWN) {
        text += &format!("step      {step}\n");
    }
    let more = (plan.steps_total as usize).saturating_sub(STEPS_SHOWN.min(plan.steps.len()));
    if more > 0 {
        text += &format!("          and {more} more\n");
    }
    for note in &plan.notes {
        text += &format!("note      {note}\n");
    }
    text
}

const STEPS_SHOWN: usize = 20;

fn diff(env: &Environment, old: &PlanView, new: &PlanView) -> Ended {
    let gone: Vec<&String> = old.steps.iter().filter(|step| !new.steps.contains(step)).collect();
    let came: Vec<&String> = new.steps.iter().filter(|step| !old.steps.contains(step)).collect();
    if env.format().is_json() {
        return env.print_json(&json!({
            "schema": "isx.plan.diff/1", "configEpoch": {"plan": old.config_epoch, "now": new.config_epoch},
            "bytes": {"plan": old.bytes, "now": new.bytes}, "stepsGone": gone, "stepsNew": came,
        }));
    }
    let mut text = format!("{}   epoch {} -> {}\n", old.goal, old.config_epoch, new.config_epoch);
    for ((name, before), (_, after)) in lines(old).into_iter().zip(lines(new)) {
        if before != after {
            text += &format!("{name:9} {before} -> {after}\n");
        }
    }
    for step in gone {
        text += &format!("-         {step}\n");
    }
    for step in came {
        text += &format!("+         {step}\n");
    }
    if old.steps == new.steps {
        text += "the same steps\n";
    }
    env.print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::id::ShardId;

    fn plan() -> PlanView {
        PlanView {
            config_epoch: 918,
            made_ms: 0,
            goal: Goal::Move {
                shard: ShardId(17),
                from: NodeId(1),
                to: NodeId(4),
            },
            pace: Pace::Normal,
            steps: vec!["s-17 n1 -> n4  (asked)".into()],
            steps_total: 1,
            bytes: 1 << 20,
            disks: Vec::new(),
            tolerance: Default::default(),
            time_s: (1, 2),
            no_return: "none".into(),
            inverse: None,
            undo: String::new(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn a_plan_comes_back_from_its_file_and_only_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("grow.plan");
        let file = PlanFile::new("c".into(), "why", plan());
        file.write(&path).expect("written");
        assert_eq!(PlanFile::read(&path).expect("read"), file);
        let text = std::fs::read_to_string(&path).expect("text");
        // Ids are texts in it, so that nothing rounds them.
        assert!(text.contains("\"s-17\"") && text.contains("\"isx.plan/1\""), "{text}");
        for (from, to, why) in [
            ("918", "921", "checksum"),
            ("isx.plan/1", "isx.plan/9", "schema"),
            ("{", "", "line"),
        ] {
            std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
            let error = PlanFile::read(&path).expect_err("refused");
            assert_eq!(error.exit, exit::INVALID);
            assert!(error.message.contains(why), "{}", error.message);
        }
    }
}
