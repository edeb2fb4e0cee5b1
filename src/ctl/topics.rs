//! What `isxctl help TOPIC` tells: concepts rather than commands.
use std::ffi::OsString;

/// The text that a command line such as `isxctl help exit-codes` asks for.
pub(super) fn asked(arguments: &[OsString]) -> Option<&'static str> {
    let words: Vec<&str> = arguments.iter().skip(1).filter_map(|word| word.to_str()).collect();
    match words[..] {
        ["help" | "explain", topic] => TOPICS.iter().find(|(name, _)| *name == topic).map(|(_, text)| *text),
        _ => None,
    }
}

const TOPICS: [(&str, &str); 2] = [("exit-codes", EXIT_CODES), ("output", OUTPUT)];

/// Exit codes, as docs/cli.md has them too.
pub(super) const EXIT_CODES: &str = "\x20  0  done, or nothing to do
   1  unexpected error
   2  wrong usage
   3  not found
   4  conflict: the version, epoch or request id is not what was asked for
   5  refused by a check
   6  not allowed, or a certificate was not accepted
   7  no node reachable, or no quorum for this request
   8  time limit reached; nothing was changed
   9  outcome unknown; resolve with `isxctl request show ID`
  10  partly done; the output says what was not
  11  health is WARN (`status` and `health` with --exit-code)
  12  health is CRITICAL (the same)
  13  needs consent; rerun with the flag that the message names
  14  version skew between programs
  15  throttled; slow down
  16  resource exhausted: disk
  17  document, request or configuration invalid
 130  interrupted

`isxctl explain ISX-1201` names the exit code of one error.
";

const OUTPUT: &str = "\
Data goes to standard output, words and errors to standard error.

  -o table   for people (default)        -o plain   a line per item, tabs, plain numbers, no headings
  -o wide    with all columns            -o name    names only, a line each
  -o json    one document                -o jsonl   a line of JSON per item

Lists are shaped by their columns, in every format; --columns concerns table, wide and plain:

  isxctl shard list --columns SHARD,LEADER,SIZE --sort -SIZE
  isxctl shard list --filter SERVICE=campaign --filter LEADER!=n1 -o name
  isxctl campaign list --fields name --filter NAME~spring

Columns go by heading or by JSON field; sorting uses the value behind the cell, not its rounded text.
JSON documents name their `schema`, when they are from (`asOf`), who answered (`answeredBy`) and who did not (`missing`).
Errors with -o json are JSON too, on standard error:
{\"schema\":\"isx.error/1\",\"code\":\"ISX-1201\",\"exit\":4,\"message\":...,\"causes\":[],\"committed\":\"no\",\"next\":[...]}
`committed` is yes, no or unknown.

--watch[=2s] looks again and again: in place on a terminal, a line of JSON each time elsewhere.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::exit;

    #[test]
    fn topics_are_found_and_every_exit_code_is_told() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(asked(&words("isxctl help exit-codes")), Some(EXIT_CODES));
        assert_eq!(asked(&words("isxctl help status")), None);
        let told: Vec<u8> = EXIT_CODES
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect();
        assert!((exit::OK..=exit::INVALID).chain([exit::INTERRUPTED]).eq(told));
        let page = include_str!("../../docs/cli.md");
        assert!(
            page.contains(EXIT_CODES.split("\n\n").next().unwrap_or_default()),
            "docs/cli.md has the same table"
        );
    }
}
