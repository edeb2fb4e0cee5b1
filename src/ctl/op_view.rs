//! How operations are shown.
use serde_json::{Value, json};

use super::ops::now_ms;
use super::output::{Listing, size, span, timestamp};
use super::{Ended, Environment};
use crate::protocol::op::*;

pub(super) fn pace_of(shown: &OpView) -> String {
    let mut text = String::new();
    if shown.total_bytes > 0 {
        text += &format!("{} of {}  ", size(shown.done_bytes), size(shown.total_bytes));
    }
    if let Some(speed) = speed(shown) {
        text += &format!("{speed}  ");
    }
    text += &format!("eta {}", eta(shown));
    text
}

/// Bytes where bytes are copied, steps elsewhere, over the last minute.
pub(super) fn speed(shown: &OpView) -> Option<String> {
    match (shown.speed.bytes_per_s.0, shown.speed.steps_per_h.0) {
        (0, 0) => None,
        (0, steps) => Some(format!("{}/min", tenths(steps * 10 / 60))),
        (bytes, _) => Some(format!("{}/s", size(bytes))),
    }
}

fn tenths(tenths: u64) -> String {
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn eta(shown: &OpView) -> String {
    if shown.op.state.is_over() {
        return "-".to_owned();
    }
    shown.eta_s.map_or_else(
        || "-".to_owned(),
        |(least, most)| format!("{}-{}", span(least * 1000), span(most * 1000)),
    )
}

/// For how long something has stood in the way.
pub(super) fn since(blocker: &OpBlocker) -> String {
    let for_ms = blocker.since_ms.map(|since_ms| now_ms().saturating_sub(since_ms));
    for_ms.map_or_else(String::new, |ms| format!("   for {}", span(ms)))
}

/// Steps done of those that it takes; some operations find that there is nothing to do.
fn done_of(shown: &OpView) -> String {
    match shown.total {
        0 => "-".to_owned(),
        total => format!("{}/{total}", shown.done),
    }
}

/// One line on an operation that is under way.
pub(super) fn in_short(shown: &OpView) -> String {
    let op = &shown.op;
    let mut text = format!("{}  {}  {}  {}", op.id, op.goal, op.state, done_of(shown));
    if shown.eta_s.is_some() {
        text += &format!(", eta {}", eta(shown));
    }
    if !shown.limited_by.is_empty() {
        text += &format!(", limited by {}", shown.limited_by);
    }
    if !shown.blocked.is_empty() {
        text += &format!(", {} blocked", shown.blocked.len());
    }
    text
}

pub(super) fn view_json(shown: &OpView) -> Value {
    let op = &shown.op;
    json!({
        "schema": "isx.op/1", "op": op.id.to_string(), "kind": op.goal.kind(), "object": op.goal.object(),
        "goal": op.goal, "state": op.state.to_string(), "pace": op.pace.to_string(), "by": op.by, "because": op.because,
        "created": timestamp(op.created_ms), "ended": (op.ended_ms > 0).then(|| timestamp(op.ended_ms)),
        "result": op.result, "done": shown.done, "total": shown.total, "doneBytes": shown.done_bytes,
        "totalBytes": shown.total_bytes, "speed": speed_json(shown), "protectP99Us": op.protect_p99_us, "phases": shown.phases, "etaSeconds": shown.eta_s,
        "limitedBy": shown.limited_by, "steps": shown.steps, "blocked": shown.blocked,
        "blockedCount": shown.blocked.len(),
        "tolerance": {"now": shown.tolerance.0, "lowest": shown.tolerance.1, "after": shown.tolerance.2},
        "configEpoch": op.config_epoch, "inverse": op.inverse, "undoes": op.undoes,
    })
}

fn speed_json(shown: &OpView) -> Value {
    let (bytes, steps) = (shown.speed.bytes_per_s, shown.speed.steps_per_h);
    json!({"bytesPerSecond": {"last1m": bytes.0, "last10m": bytes.1}, "stepsPerHour": {"last1m": steps.0, "last10m": steps.1}})
}

pub(super) fn list(env: &Environment, ops: &[OpView]) -> Ended {
    let columns = [
        "OP:op",
        "KIND:kind",
        "OBJECT:object",
        "STATE:state",
        "DONE:done",
        "SPEED:speed",
        "ETA:etaSeconds",
        "LIMITED BY:limitedBy",
        "BLOCKED:blockedCount",
        "BY WHOM:by",
        "+BECAUSE:because",
    ];
    let mut listing = Listing::new("isx.op.list/1", &columns);
    for shown in ops {
        let op = &shown.op;
        let speed = speed(shown).unwrap_or_else(|| "-".to_owned());
        let or_dash = |text: &str| {
            if text.is_empty() {
                "-".to_owned()
            } else {
                text.to_owned()
            }
        };
        listing.push(
            vec![
                op.id.to_string(),
                op.goal.kind().to_owned(),
                op.goal.object(),
                op.state.to_string(),
                done_of(shown),
                speed,
                eta(shown),
                or_dash(&shown.limited_by),
                shown.blocked.len().to_string(),
                op.by.clone(),
                or_dash(&op.because),
            ],
            view_json(shown),
        );
    }
    env.print_listing(&listing)
}

pub(super) fn show(env: &Environment, shown: &OpView) -> Ended {
    if env.format().is_json() {
        return env.print_json(&view_json(shown));
    }
    let op = &shown.op;
    let mut text = format!(
        "{}   {}   {}   pace {}   by {} at {}   config epoch {}\n",
        op.id,
        op.goal,
        op.state,
        op.pace,
        op.by,
        timestamp(op.created_ms),
        op.config_epoch
    );
    if !op.because.is_empty() {
        text += &format!("because   {}\n", op.because);
    }
    text += &format!("done      {} of {} steps", shown.done, shown.total);
    if shown.total_bytes > 0 {
        text += &format!(", {} of {}", size(shown.done_bytes), size(shown.total_bytes));
    }
    text += &format!("   eta {}\n", eta(shown));
    for (at, phase) in shown.phases.iter().enumerate() {
        let state = match phase {
            phase if phase.done == phase.total && (phase.total > 0 || op.state == OpState::Done) => "done".to_owned(),
            phase if phase.total == 0 => "-".to_owned(),
            phase => format!("{} of {}", phase.done, phase.total),
        };
        text += &format!("  {} {:22} {state}\n", at + 1, phase.name);
    }
    let ((minute, ten), steps) = (shown.speed.bytes_per_s, shown.speed.steps_per_h);
    if minute + ten > 0 {
        text += &format!("speed     {}/s over 1 min, {}/s over 10 min\n", size(minute), size(ten));
    } else if steps.0 + steps.1 > 0 {
        let per_min = |steps: u64| tenths(steps * 10 / 60);
        text += &format!(
            "speed     {} steps/min over 1 min, {} over 10 min\n",
            per_min(steps.0),
            per_min(steps.1)
        );
    }
    if !op.state.is_over() {
        let (now, lowest, after) = shown.tolerance;
        text += &format!("tolerance nodes that may be lost: {now} now, {lowest} at the lowest, {after} afterwards\n");
    }
    if !shown.limited_by.is_empty() {
        text += &format!("limited   {}\n", shown.limited_by);
    }
    for step in &shown.steps {
        text += &format!("step      {step}\n");
    }
    for blocker in &shown.blocked {
        text += &format!(
            "blocked   {}  {}  {}{}\n",
            blocker.code,
            blocker.object,
            blocker.text,
            since(blocker)
        );
        for next in blocker.next.lines() {
            text += &format!("          try  {next}\n");
        }
    }
    if op.state.is_over() {
        text += &format!("ended     {}: {}\n", timestamp(op.ended_ms), op.result);
    }
    env.print(&text)
}
