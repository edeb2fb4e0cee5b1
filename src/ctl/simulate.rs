//! `isxctl simulate`: what the planner would do with a cluster that nobody has, in numbers.
//!
//! It calls the planner of the daemon itself, on a cluster made up from a seed: the answer to "what if" is the answer
//! of the code that would have to do it. No cluster is asked and nothing is changed anywhere.
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::exit::{self, CtlError};
use super::output::{self, Format, size};
use super::{Ended, Environment};
use crate::daemon::core::placement::apply::Applier;
use crate::daemon::core::placement::check::Tolerance;
use crate::daemon::core::placement::plan::{Blocker, Goals, Plan, Range, Spread, plan};
use crate::daemon::core::placement::rules::{self, RuleReport};
use crate::daemon::core::placement::synthetic::Synthetic;
use crate::daemon::core::placement::view::{ClusterView, Health, Intent, Pace};
use crate::protocol::id::NodeId;

/// What is made up, and what happens to it.
#[derive(Debug, Clone, Args)]
pub struct SimulateArgs {
    /// Nodes, n1 and so on, dealt out to the zones
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub nodes: u32,
    /// Zones, zone-a and so on
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub zones: u32,
    /// Shards
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=20_000_000))]
    pub shards: u32,
    /// Copies of each shard
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub replicas: u32,
    /// Zones that the copies of a shard must be in
    #[arg(long, default_value_t = 1, value_name = "ZONES", value_parser = clap::value_parser!(u32).range(1..=7))]
    pub rule_zones: u32,
    /// Mean size of a shard in MiB; sizes are between a quarter and seven quarters of it
    #[arg(long, default_value_t = 64, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub shard_mib: u64,
    /// Size of each disk in GiB
    #[arg(long, default_value_t = 1_024, value_name = "GIB", value_parser = clap::value_parser!(u64).range(1..=1_048_576))]
    pub disk_gib: u64,
    /// Mean requests per second and shard
    #[arg(long, default_value_t = 20, value_name = "PER_S", value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub shard_load: u64,
    /// Where everything random comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Nodes that are lost for good
    #[arg(long, value_delimiter = ',', value_name = "NODES")]
    pub lose: Vec<NodeId>,
    /// Nodes that are drained
    #[arg(long, value_delimiter = ',', value_name = "NODES")]
    pub drain: Vec<NodeId>,
    /// Empty nodes that come, such as 2@zone-c (repeat)
    #[arg(long, value_name = "COUNT@ZONE", value_parser = growth)]
    pub add: Vec<(u32, String)>,
    /// Load grows by this, such as x2
    #[arg(long, value_name = "xN", value_parser = factor)]
    pub load: Option<u64>,
    /// How fast copies are made
    #[arg(long, default_value = "normal", value_parser = pace)]
    pub pace: Pace,
    /// Do not even out the made-up cluster before something happens to it
    #[arg(long)]
    pub scattered: bool,
    /// Also print so many of the steps, from the first on
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub steps: usize,
}

/// What came of it.
struct Answer {
    plan: Plan,
    rules: Vec<RuleReport>,
    view_bytes: u64,
    took: Duration,
}

/// Makes the cluster up, lets it happen, plans, reports.
pub(super) fn run(env: &Environment, args: &SimulateArgs) -> Ended {
    let (view, evened) = prepare(args)?;
    let start = Instant::now();
    let plan = plan(&view, &Goals::all());
    let answer = Answer {
        plan,
        took: start.elapsed(),
        rules: rules::check(&view),
        view_bytes: view.shards.iter().map(|s| s.bytes * s.replicas.len() as u64).sum(),
    };
    if matches!(env.format(), Format::Json | Format::Jsonl) {
        return env.print(&output::pretty(&document(args, &answer)));
    }
    if evened > 0 {
        env.say(&format!(
            "evened out first, as a running cluster is: {} steps",
            grouped(evened)
        ));
    }
    env.print(&report(args, &answer))
}

/// The cluster after what happens to it, and how many steps evened it out before.
fn prepare(args: &SimulateArgs) -> Result<(ClusterView, u64), CtlError> {
    let made = Synthetic {
        nodes: args.nodes,
        zones: args.zones,
        shards: args.shards,
        replicas: args.replicas,
        rule_zones: args.rule_zones,
        shard_bytes: args.shard_mib << 20,
        disk_bytes: args.disk_gib << 30,
        shard_load: args.shard_load,
        seed: args.seed,
    };
    let mut view = made.build();
    view.settings.pace = args.pace;
    for id in args.lose.iter().chain(&args.drain) {
        if view.node(*id).is_none() {
            let text = format!("there is no node {id}: the simulated nodes are n1 to n{}", args.nodes);
            return Err(CtlError::new(exit::NOT_FOUND, text));
        }
    }
    let happens = !(args.lose.is_empty() && args.drain.is_empty() && args.add.is_empty()) || args.load.is_some();
    let mut evened = 0;
    if happens && !args.scattered {
        let goals = Goals {
            split: false,
            merge: false,
            ..Goals::all()
        };
        let plan = plan(&view, &goals);
        evened = plan.steps.len() as u64;
        let places: BTreeMap<_, _> = view
            .shards
            .iter()
            .enumerate()
            .map(|(at, shard)| (shard.id, at))
            .collect();
        let mut applier = Applier::new(&view);
        for step in &plan.steps {
            applier.apply_at(&mut view, step, places[&step.shard]);
        }
        // That was long ago.
        view.recent.clear();
    }
    for node in &mut view.nodes {
        if args.lose.contains(&node.id) {
            (node.health, node.down_ms) = (Health::Down, view.settings.heal_after_ms);
        }
        if args.drain.contains(&node.id) {
            node.intent = Intent::DrainAll;
        }
    }
    for (count, zone) in &args.add {
        made.add(&mut view, *count, zone);
    }
    if let Some(factor) = args.load {
        for shard in &mut view.shards {
            shard.load = shard.load.saturating_mul(factor);
        }
    }
    Ok((view, evened))
}

fn report(args: &SimulateArgs, answer: &Answer) -> String {
    let plan = &answer.plan;
    let mut text = String::new();
    let mut line = |name: &str, words: &str| {
        let _ = writeln!(text, "{name:<10} {words}");
    };
    line(
        "simulated",
        &format!(
            "{} nodes in {} zones, {} shards, {} copies, {} in all; seed {}",
            grouped(args.nodes.into()),
            args.zones.min(args.nodes),
            grouped(args.shards.into()),
            args.replicas,
            size(answer.view_bytes),
            args.seed
        ),
    );
    line("happens", &happenings(args));
    line(
        "planned",
        &format!(
            "in {:.2} s with {} of memory at most, by the planner that isxd runs",
            answer.took.as_secs_f64(),
            peak_memory().map_or_else(|| "an unknown amount".to_owned(), size)
        ),
    );
    text.push('\n');
    text += &spreads(&plan.before, &plan.after);
    text.push('\n');
    let mut line = |name: &str, words: &str| {
        let _ = writeln!(text, "{name:<10} {words}");
    };
    line("can lose", &format!("before: {}", tolerance(plan.tolerance_before)));
    line("", &format!("lowest on the way: {}", tolerance(plan.tolerance_lowest)));
    line("", &format!("after: {}", tolerance(plan.tolerance_after)));
    for rule in &answer.rules {
        line(
            "rule",
            &format!(
                "{} ({}): now {}; after losing 1 node {}; after losing 1 zone {}",
                rule.rule, rule.scope, rule.now.text, rule.after_node.text, rule.after_zone.text
            ),
        );
    }
    let counts: Vec<String> = plan
        .counts()
        .iter()
        .map(|(why, count)| format!("{why} {}", grouped(*count)))
        .collect();
    let counts = if counts.is_empty() {
        String::new()
    } else {
        format!(": {}", counts.join(", "))
    };
    line("steps", &format!("{}{counts}", grouped(plan.steps.len() as u64)));
    let moves = plan.steps.iter().filter(|step| step.receiver().is_some()).count() as u64;
    line(
        "copies",
        &format!("{} made, {} over the network", grouped(moves), size(plan.bytes)),
    );
    if let Some(fullest) = plan
        .disks
        .iter()
        .max_by_key(|disk| (percent(disk.peak, disk.total), disk.peak))
    {
        line(
            "disk",
            &format!(
                "{} is the fullest on the way: {} % of {}",
                fullest.node,
                percent(fullest.peak, fullest.total),
                size(fullest.total)
            ),
        );
    }
    line(
        "time",
        &format!(
            "{} to {} at pace {} ({}/s per node and direction)",
            output::span(plan.time_ms.0),
            output::span(plan.time_ms.1),
            args.pace,
            size(args.pace.bytes_per_second())
        ),
    );
    for note in &plan.notes {
        line("note", &note.text);
    }
    let refused: u64 = plan.refusals.iter().map(|blocker| blocker.shards).sum();
    line(
        "refused",
        &if plan.refusals.is_empty() {
            "nothing".to_owned()
        } else {
            format!("{} shards", grouped(refused))
        },
    );
    for Blocker {
        code, text: what, next, ..
    } in &plan.refusals
    {
        let _ = writeln!(text, "  {:<15} {what}", code.to_string());
        for command in next {
            let _ = writeln!(text, "  {:<15} {command}", "try");
        }
    }
    for (number, step) in plan.steps.iter().take(args.steps).enumerate() {
        let _ = writeln!(text, "{:>9}  {step}", number + 1);
    }
    text
}

fn happenings(args: &SimulateArgs) -> String {
    let names = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut all = Vec::new();
    if !args.lose.is_empty() {
        all.push(format!("{} lost", names(&args.lose)));
    }
    if !args.drain.is_empty() {
        all.push(format!("{} drained", names(&args.drain)));
    }
    for (count, zone) in &args.add {
        all.push(format!("{count} new in {zone}"));
    }
    if let Some(factor) = args.load {
        all.push(format!("load x{factor}"));
    }
    if all.is_empty() {
        "nothing: shards are where chance put them".to_owned()
    } else {
        all.join("; ")
    }
}

/// A name, before, after, and how such a number is shown.
type SpreadRow = (&'static str, Range, Range, fn(u64) -> String);

/// Before and after side by side: least, mean and most of each.
fn spreads(before: &Spread, after: &Spread) -> String {
    let mut text = format!("{:<10} {:^39}   {:>22}\n{:<10}", "", "BEFORE", "AFTER", "PER NODE");
    for _ in 0..2 {
        let _ = write!(text, " {:>12}{:>12}{:>12}   ", "LEAST", "MEAN", "MOST");
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    let number: fn(u64) -> String = grouped;
    let share: fn(u64) -> String = |permille| format!("{}.{} %", permille / 10, permille % 10);
    let rows: [SpreadRow; 5] = [
        ("copies", before.replicas, after.replicas, number),
        ("bytes", before.bytes, after.bytes, size),
        ("leaders", before.leaders, after.leaders, number),
        ("requests/s", before.load, after.load, number),
        ("disk", before.disk_permille, after.disk_permille, share),
    ];
    for (name, before, after, show) in rows {
        let mut row = format!("{name:<10}");
        for range in [before, after] {
            let _ = write!(
                row,
                " {:>12}{:>12}{:>12}   ",
                show(range.min),
                show(range.mean),
                show(range.max)
            );
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

fn tolerance(tolerance: Tolerance) -> String {
    let plural = |count: u32, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let text = format!(
        "{} and {}",
        plural(tolerance.nodes, "node"),
        plural(tolerance.zones, "zone")
    );
    match tolerance.without_quorum {
        0 => text + ", whichever they are",
        count => format!("{text}; {} shards refuse writes", grouped(count)),
    }
}

fn document(args: &SimulateArgs, answer: &Answer) -> Value {
    let plan = &answer.plan;
    let counts: BTreeMap<String, u64> = plan.counts().iter().map(|(why, n)| (why.to_string(), *n)).collect();
    let verdict = |verdict: &rules::Verdict| json!({"holds": verdict.holds, "text": verdict.text});
    let rules: Vec<Value> = answer
        .rules
        .iter()
        .map(|rule| {
            json!({
                "rule": rule.rule, "scope": rule.scope, "shards": rule.shards, "now": verdict(&rule.now),
                "afterNode": verdict(&rule.after_node), "afterZone": verdict(&rule.after_zone),
            })
        })
        .collect();
    let fullest = plan
        .disks
        .iter()
        .max_by_key(|disk| (percent(disk.peak, disk.total), disk.peak));
    let next: Vec<&String> = plan.refusals.iter().flat_map(|blocker| &blocker.next).collect();
    json!({
        "schema": "isx.simulate/1",
        "nodes": args.nodes, "zones": args.zones, "shards": args.shards, "replicas": args.replicas, "seed": args.seed,
        "happens": happenings(args),
        "planMs": answer.took.as_millis() as u64, "peakMemoryBytes": peak_memory(),
        "before": plan.before, "after": plan.after,
        "toleranceBefore": plan.tolerance_before, "toleranceLowest": plan.tolerance_lowest,
        "toleranceAfter": plan.tolerance_after,
        "steps": plan.steps.len(), "stepsByReason": counts, "firstSteps": &plan.steps[..args.steps.min(plan.steps.len())],
        "bytes": plan.bytes, "timeMs": {"from": plan.time_ms.0, "to": plan.time_ms.1, "pace": args.pace},
        "fullestDisk": fullest, "rules": rules, "notes": plan.notes, "refusals": plan.refusals, "next": next,
    })
}

fn percent(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 100).div_ceil(u128::from(whole.max(1))) as u64
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The most memory this process has used, as the kernel counts it. Unit: bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn growth(text: &str) -> Result<(u32, String), String> {
    let bad = || "how many and where, such as 2@zone-c".to_owned();
    let (count, zone) = text.split_once('@').ok_or_else(bad)?;
    let zone = zone.strip_prefix("zone=").unwrap_or(zone);
    // `c` and `zone-c` are one zone: the simulated ones are named that way.
    let zone = if zone.starts_with("zone-") {
        zone.to_owned()
    } else {
        format!("zone-{zone}")
    };
    let count = count
        .parse()
        .ok()
        .filter(|count| (1..=10_000).contains(count))
        .ok_or_else(bad)?;
    if zone == "zone-" { Err(bad()) } else { Ok((count, zone)) }
}

fn factor(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix('x').unwrap_or(text);
    number
        .parse()
        .ok()
        .filter(|factor| (1..=10_000).contains(factor))
        .ok_or_else(|| "a whole factor, such as x2".to_owned())
}

fn pace(text: &str) -> Result<Pace, String> {
    match text {
        "gentle" => Ok(Pace::Gentle),
        "normal" => Ok(Pace::Normal),
        "fast" => Ok(Pace::Fast),
        _ => Err("gentle, normal or fast".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    fn args(line: &str) -> SimulateArgs {
        Line::try_parse_from(std::iter::once("simulate").chain(line.split_whitespace()))
            .expect("a command line")
            .args
    }

    fn answer(args: &SimulateArgs) -> Answer {
        let (view, _) = prepare(args).expect("a cluster");
        Answer {
            plan: plan(&view, &Goals::all()),
            rules: rules::check(&view),
            view_bytes: 0,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn what_happens_is_read_in_several_spellings() {
        for spelling in ["2@zone-c", "2@zone=c", "2@c", "2@zone=zone-c"] {
            assert_eq!(growth(spelling), Ok((2, "zone-c".to_owned())), "{spelling}");
        }
        assert!(growth("2").is_err() && growth("0@c").is_err() && growth("2@").is_err());
        assert_eq!((factor("x2"), factor("3")), (Ok(2), Ok(3)));
        assert!(factor("x0").is_err() && factor("x1.5").is_err());
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!([grouped(0), grouped(999), grouped(1000)], ["0", "999", "1,000"]);
    }

    #[test]
    fn a_loss_is_reported_with_what_it_takes_to_heal() {
        let args = args("--nodes 9 --shards 300 --lose n3 --add 1@zone-c --steps 2");
        let answer = answer(&args);
        let text = report(&args, &answer);
        for part in [
            "happens    n3 lost; 1 new in zone-c",
            "before: 0 nodes and 0 zones, whichever they are",
            "after: 1 node and 1 zone, whichever they are",
            "refused    nothing",
            "(heal)",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        let json = document(&args, &answer);
        assert_eq!(json["toleranceAfter"]["nodes"], 1);
        assert_eq!(json["firstSteps"].as_array().map(Vec::len), Some(2));
        assert!(json["stepsByReason"]["heal"].as_u64() > Some(50), "{json}");
    }

    #[test]
    fn what_cannot_be_healed_is_refused_with_a_code_and_a_command() {
        let args = args("--nodes 3 --shards 20 --lose n3");
        let text = report(&args, &answer(&args));
        assert!(
            text.contains("NO_TARGET_NODE") && text.contains("isxctl token create"),
            "{text}"
        );
        let missing = prepare(&self::args("--nodes 3 --lose n9")).expect_err("no such node");
        assert_eq!(missing.exit, exit::NOT_FOUND);
    }
}
