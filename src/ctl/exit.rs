//! How `isxctl` ends: exit codes, and the error that the operator reads.
use std::fmt::Write as _;

use serde_json::json;

use crate::client::{ClientError, ConnectError};
use crate::protocol::error::{Class, Code, WireError};
use crate::protocol::op::OpBlocker;

/// Done, or nothing to do.
pub const OK: u8 = 0;
/// Unexpected error.
pub const UNEXPECTED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// Not found.
pub const NOT_FOUND: u8 = 3;
/// Conflict: version or epoch is stale, or the entity exists.
pub const CONFLICT: u8 = 4;
/// Refused by a check.
pub const REFUSED: u8 = 5;
/// Not allowed, or certificate not accepted.
pub const NOT_ALLOWED: u8 = 6;
/// No node reachable, or no quorum for this request.
pub const UNREACHABLE: u8 = 7;
/// Time limit reached.
pub const TIME_LIMIT: u8 = 8;
/// Outcome unknown; resolve with `isxctl request show`.
pub const UNKNOWN: u8 = 9;
/// Partly done; per-item results in the output.
pub const PARTLY: u8 = 10;
/// Health is WARN (`status --exit-code`).
pub const WARN: u8 = 11;
/// Health is CRITICAL (`status --exit-code`).
pub const CRITICAL: u8 = 12;
/// Needs consent; rerun with the named flag.
pub const CONSENT: u8 = 13;
/// Version skew.
pub const SKEW: u8 = 14;
/// Throttled.
pub const THROTTLED: u8 = 15;
/// Resource exhausted.
pub const EXHAUSTED: u8 = 16;
/// Configuration, document or schema invalid.
pub const INVALID: u8 = 17;
/// `plan --exit-code`: there is something to do.
pub const CHANGES: u8 = 20;
/// Interrupted by Ctrl-C; what was started goes on.
pub const INTERRUPTED: u8 = 130;

/// What went wrong, for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CtlError {
    /// Exit code.
    pub exit: u8,
    /// `ISX-1234`, where the cluster gave one.
    pub code: Option<Code>,
    /// What happened.
    pub message: String,
    /// Why, from the outside in.
    pub causes: Vec<String>,
    /// `no`, `yes` or `unknown`.
    pub committed: &'static str,
    /// Commands that help.
    pub next: Vec<String>,
    /// What a safety check found in the way.
    pub blockers: Vec<OpBlocker>,
}

impl CtlError {
    /// An error after which nothing was changed.
    pub fn new(exit: u8, message: impl Into<String>) -> Self {
        Self {
            exit,
            code: None,
            message: message.into(),
            causes: Vec::new(),
            committed: "no",
            next: Vec::new(),
            blockers: Vec::new(),
        }
    }

    /// With a command that helps.
    pub fn next(mut self, command: impl Into<String>) -> Self {
        self.next.push(command.into());
        self
    }

    /// From any error with its chain of causes.
    pub fn from_error(exit: u8, error: &dyn std::error::Error) -> Self {
        let mut this = Self::new(exit, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            this.causes.push(cause.to_string());
            source = cause.source();
        }
        this
    }

    /// As a person reads it.
    pub fn text(&self) -> String {
        let word = match self.exit {
            UNKNOWN => "unknown",
            REFUSED | CONFLICT | NOT_ALLOWED | INVALID | EXHAUSTED => "refused",
            NOT_FOUND => "not found",
            UNREACHABLE => "unreachable",
            TIME_LIMIT => "time limit",
            _ => "error",
        };
        let word = if self.code == Some(Code::StalePlan) {
            "stale"
        } else {
            word
        };
        let mut text = format!("{word}: {}", self.message);
        if let Some(code) = self.code {
            let _ = write!(text, "   {code}");
        }
        for cause in &self.causes {
            let _ = write!(text, "\n  cause  {cause}");
        }
        let width = self
            .blockers
            .iter()
            .map(|blocker| blocker.code.len())
            .max()
            .unwrap_or(0);
        for blocker in &self.blockers {
            let _ = write!(text, "\n  {:width$}  {}", blocker.code, blocker.text);
        }
        if self.committed == "no" && !self.message.contains("nothing was") {
            text += "\nnothing was changed.";
        }
        for next in &self.next {
            let _ = write!(text, "\ntry    {next}");
        }
        text
    }

    /// As a program reads it.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "schema": "isx.error/1", "code": self.code.map(|code| code.to_string()), "exit": self.exit,
            "message": self.message, "causes": self.causes, "committed": self.committed, "next": self.next,
            "blockers": self.blockers,
        })
    }
}

/// The exit code of an error that a node answered.
pub fn of(code: Code) -> u8 {
    match code {
        Code::NotFound
        | Code::NoService
        | Code::NoSuchShard
        | Code::NoSuchOp
        | Code::NoSuchNode
        | Code::NoSuchOperation
        | Code::NoSuchMessage
        | Code::NoSuchRule => NOT_FOUND,
        Code::VersionConflict
        | Code::Exists
        | Code::RequestIdReused
        | Code::StaleEpoch
        | Code::OpConflict
        | Code::OpIsOver
        | Code::StalePlan
        | Code::OperationIsOver => CONFLICT,
        Code::PoolInUse | Code::SchemaBehind => REFUSED,
        Code::TooManyOperations => EXHAUSTED,
        Code::BreakingSchema | Code::HasChildren => REFUSED,
        Code::BadSplit | Code::BadTarget | Code::BadMerge | Code::BadChange | Code::TooFewReplicas | Code::UnsafeOp => {
            REFUSED
        }
        Code::Forbidden | Code::OtherCluster | Code::NotProven | Code::Removed | Code::BadToken => NOT_ALLOWED,
        Code::ProtocolVersion => SKEW,
        Code::Busy => THROTTLED,
        Code::DiskFull => EXHAUSTED,
        Code::BadDocument | Code::TooLarge | Code::BadRequest | Code::BadSchema | Code::AgainstSchema => INVALID,
        Code::OutcomeUnknown => UNKNOWN,
        _ if code.class() == Class::Retry => UNREACHABLE,
        _ => UNEXPECTED,
    }
}

/// `, 12s ago`.
fn ago(at_ms: Option<u64>) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ms = now.map_or(0, |now| now.as_millis() as u64);
    at_ms.map_or_else(String::new, |at_ms| {
        format!(", {} ago", super::output::span(now_ms.saturating_sub(at_ms)))
    })
}

impl From<WireError> for CtlError {
    fn from(error: WireError) -> Self {
        let exit = of(error.code);
        let explain = format!("isxctl explain {}", error.code);
        let mut next: Vec<String> = error
            .blockers
            .iter()
            .flat_map(|b| b.next.lines().map(str::to_owned))
            .collect();
        next.dedup();
        next.push(explain);
        let committed = if error.class() == Class::Unknown {
            "unknown"
        } else {
            "no"
        };
        let mut this = Self {
            code: Some(error.code),
            committed,
            blockers: error.blockers,
            next,
            ..Self::new(exit, error.text)
        };
        if error.code == Code::StalePlan {
            // What has changed is why, and stands in nobody's way.
            let told = |change: OpBlocker| format!("{}: {}{}", change.code, change.text, ago(change.since_ms));
            this.causes = std::mem::take(&mut this.blockers).into_iter().map(told).collect();
        }
        this
    }
}

impl From<ClientError> for CtlError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(wire) => wire.into(),
            ClientError::Unknown { id, service, key, last } => {
                let message = format!("the outcome of the write to {service}/{key} is not known: {last}");
                Self {
                    committed: "unknown",
                    ..Self::new(UNKNOWN, message)
                }
                .next(format!("isxctl request show {id} --of {service}/{key}"))
                .next(format!(
                    "the same command with --request-id {id}   has one effect, however often"
                ))
            }
            ClientError::Unreachable { tried } => unreachable_nodes(&tried),
            ClientError::TimedOut { code, .. } => {
                // Nobody leads: that is no slow answer but no quorum.
                let exit = match code {
                    Some(Code::NoLeader | Code::LeaderChanged) => UNREACHABLE,
                    Some(Code::Busy) => THROTTLED,
                    _ => TIME_LIMIT,
                };
                Self {
                    code,
                    ..Self::new(exit, error.to_string())
                }
                .next("isxctl status")
            }
            ClientError::NoSuchNode(_) => Self::new(NOT_FOUND, error.to_string()).next("isxctl node list"),
            ClientError::Encode(_) | ClientError::Continuation(_) | ClientError::WatchToken(_) => {
                Self::new(USAGE, error.to_string())
            }
            other => Self::from_error(UNEXPECTED, &other),
        }
    }
}

impl From<ConnectError> for CtlError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { tried } => unreachable_nodes(&tried),
            ConnectError::Certificate { .. } => {
                Self::from_error(NOT_ALLOWED, &error).next("isxctl context show   shows which certificates are used")
            }
            ConnectError::Refused { error: wire, .. } => wire.into(),
            ConnectError::Context(_) | ConnectError::NoEndpoint => Self::from_error(USAGE, &error)
                .next("isxctl dev up          starts a cluster on this machine")
                .next("isxctl context list    shows the clusters that are known"),
            other => Self::from_error(USAGE, &other),
        }
    }
}

fn unreachable_nodes(tried: &[(String, String)]) -> CtlError {
    let mut error = CtlError::new(UNREACHABLE, "no node answered");
    error.causes = tried.iter().map(|(who, why)| format!("{who}: {why}")).collect();
    error.next("isxctl dev status      if it is the local cluster")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_an_exit_code_and_an_explanation() {
        for &code in Code::ALL {
            let error = CtlError::from(WireError::new(code, "what happened; nothing was changed"));
            assert_ne!(error.exit, OK, "{code}");
            assert_eq!(error.exit == UNKNOWN, code.class() == Class::Unknown, "{code}");
            assert!(code.explain().len() > 30 && code.title().len() > 8, "{code}");
        }
    }

    #[test]
    fn exit_codes_do_not_change() {
        let table: Vec<(u16, u8)> = Code::ALL.iter().map(|&code| (code.number(), of(code))).collect();
        let wanted = [
            (1001, UNREACHABLE),
            (1002, UNREACHABLE),
            (1003, THROTTLED),
            (1004, UNREACHABLE),
            (1005, UNREACHABLE),
            (1006, UNREACHABLE),
            (1007, UNREACHABLE),
            (1101, UNKNOWN),
            (1201, CONFLICT),
            (1202, CONFLICT),
            (1203, NOT_FOUND),
            (1204, CONFLICT),
            (1301, INVALID),
            (1302, INVALID),
            (1303, INVALID),
            (1304, NOT_FOUND),
            (1401, NOT_ALLOWED),
            (1402, NOT_ALLOWED),
            (1403, SKEW),
            (1404, NOT_ALLOWED),
            (1501, REFUSED),
            (1502, NOT_FOUND),
            (1503, CONFLICT),
            (1504, REFUSED),
            (1505, NOT_ALLOWED),
            (1601, EXHAUSTED),
            (1701, UNEXPECTED),
            (1901, UNEXPECTED),
        ];
        // New codes may be added; those that are known keep theirs.
        for known in wanted {
            assert!(table.contains(&known), "{known:?}, now {table:?}");
        }
    }

    #[test]
    fn an_error_says_what_why_whether_and_what_next() {
        let error = ClientError::Unreachable {
            tried: vec![("127.0.0.1:1".into(), "timed out".into())],
        };
        let error = CtlError::from(error);
        assert_eq!(error.exit, UNREACHABLE);
        assert_eq!(
            error.text(),
            "unreachable: no node answered\n  cause  127.0.0.1:1: timed out\nnothing was changed.\n\
             try    isxctl dev status      if it is the local cluster"
        );
        let unknown = ClientError::Unknown {
            id: crate::protocol::id::RequestId(1),
            service: "campaign".into(),
            key: "c-1".into(),
            last: "timed out".into(),
        };
        let unknown = CtlError::from(unknown);
        assert_eq!((unknown.exit, unknown.committed), (UNKNOWN, "unknown"));
        assert!(unknown.text().contains("isxctl request show r-"), "{}", unknown.text());
        assert!(!unknown.text().contains("nothing was changed"));
    }
}
