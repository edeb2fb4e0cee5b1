//! Who may import whom. A node is a pure function with two drivers; it stays one because nothing in the core can reach
//! a clock, a thread, a file or a socket, and because the drivers do not know each other.
use std::path::{Path, PathBuf};

struct Rule {
    /// Sources it is about, under `src`.
    of: &'static str,
    /// What must not be in their code, and why.
    never: &'static [(&'static str, &'static str)],
}

const RUNTIME: &str = "the runtime and the network belong to `shell`";
const CLOCK: &str = "time is an argument here: it comes with each input";
const ORDER: &str = "its order differs from run to run: use BTreeMap or BTreeSet";
const IO: &str = "files, sockets and threads belong to a driver";
const CHANCE: &str = "chance comes from a seed";

const RULES: &[Rule] = &[
    Rule {
        of: "protocol",
        never: &[
            ("crate::daemon", "the protocol knows nobody"),
            ("crate::client", "the protocol knows nobody"),
            ("crate::ctl", "the protocol knows nobody"),
            ("crate::security", "the protocol knows nobody"),
            ("tokio", RUNTIME),
            ("quinn", RUNTIME),
            ("redb", "the protocol is data, not storage"),
            ("std::fs", IO),
            ("std::net", IO),
            ("Instant::now", CLOCK),
            ("SystemTime", CLOCK),
        ],
    },
    Rule {
        of: "daemon/core",
        never: &[
            ("daemon::store", "the core sees rows through `state::State` only"),
            ("daemon::shell", "a driver calls the core, never the other way"),
            ("daemon::sim", "a driver calls the core, never the other way"),
            ("daemon::config", "the core is told what it needs in `NodeConfig`"),
            ("crate::client", "the core knows the protocol only"),
            ("crate::ctl", "the core knows the protocol only"),
            ("crate::security", "the core knows the protocol only"),
            ("tokio", RUNTIME),
            ("quinn", RUNTIME),
            ("redb", "the core sees rows through `state::State` only"),
            ("Instant::now", CLOCK),
            ("SystemTime", CLOCK),
            ("std::thread", IO),
            ("std::fs", IO),
            ("std::net", IO),
            ("rand::", CHANCE),
            ("getrandom", CHANCE),
            ("fastrand::u64(", CHANCE),
            ("fastrand::usize(", CHANCE),
            ("Rng::new()", CHANCE),
            ("::random()", CHANCE),
            ("HashMap", ORDER),
            ("HashSet", ORDER),
        ],
    },
    Rule {
        of: "daemon/store",
        never: &[
            ("daemon::shell", "the store serves both drivers"),
            ("daemon::sim", "the store serves both drivers"),
            ("crate::client", "the store knows the core's data only"),
            ("crate::ctl", "the store knows the core's data only"),
            ("tokio", "the store blocks: a driver gives it a thread"),
        ],
    },
    Rule {
        of: "daemon/shell",
        never: &[
            ("daemon::sim", "the drivers do not know each other"),
            ("crate::ctl", "the daemon does not need its operator's tool"),
        ],
    },
    Rule {
        of: "ctl",
        never: &[
            (
                "crate::daemon",
                "the operator's tool uses the client library and the protocol",
            ),
            ("daemon::shell", "the operator's tool starts daemons as processes"),
            (
                "daemon::store",
                "the operator's tool asks nodes, it does not open their files",
            ),
            ("redb", "the operator's tool asks nodes, it does not open their files"),
        ],
    },
    Rule {
        of: "daemon/sim",
        never: &[
            ("daemon::shell", "the drivers do not know each other"),
            ("crate::client", "simulated clients are simulated"),
            ("crate::ctl", "a simulation has no operator"),
            ("tokio", RUNTIME),
            ("quinn", RUNTIME),
            ("Instant::now", "time is virtual here"),
            ("SystemTime", "time is virtual here"),
            ("std::thread", "a world is one thread"),
            ("std::fs", IO),
            ("std::net", IO),
            ("std::env", "what a run is like is in its options"),
            ("getrandom", CHANCE),
            ("fastrand::u64(", CHANCE),
            ("Rng::new()", CHANCE),
            ("::random()", CHANCE),
            ("HashMap", ORDER),
            ("HashSet", ORDER),
        ],
    },
];

/// What a rule forbids and one file is allowed all the same, and why.
const ALLOWED: &[(&str, &str, &str)] = &[(
    "ctl/simulate.rs",
    "crate::daemon",
    "`isxctl simulate` answers with the planner that the daemon runs, or it would predict something else",
)];

fn sources(under: &Path, found: &mut Vec<PathBuf>) {
    let Ok(folder) = std::fs::read_dir(under) else { return };
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Whether `line` has `word` in code, as a whole path and not as part of a longer name.
fn has(line: &str, word: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    code.match_indices(word).any(|(at, _)| {
        let is_name = |c: char| c.is_alphanumeric() || c == '_';
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let goes_on = word.ends_with(is_name) && after.is_some_and(is_name);
        !before.is_some_and(is_name) && !goes_on
    })
}

#[test]
fn nobody_imports_what_is_not_for_them() {
    let src = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for rule in RULES {
        let mut files = Vec::new();
        sources(&src.join(rule.of), &mut files);
        assert!(!files.is_empty(), "src/{} has no sources: mend this table", rule.of);
        for path in files {
            let text = std::fs::read_to_string(&path).expect("a readable source");
            let name = path.strip_prefix(&src).expect("under src").display().to_string();
            let is_test = name.ends_with("tests.rs");
            for (number, line) in text.lines().enumerate() {
                if is_test || line.starts_with("mod tests {") {
                    break;
                }
                for (word, why) in rule.never {
                    let is_allowed = ALLOWED.iter().any(|(file, what, _)| *file == name && what == word);
                    if has(line, word) && !is_allowed {
                        broken.push(format!("src/{name}:{}: `{word}`: {why}", number + 1));
                    }
                }
            }
        }
    }
    assert!(
        broken.is_empty(),
        "{} forbidden imports\n{}",
        broken.len(),
        broken.join("\n")
    );
}

#[test]
fn words_are_found_whole() {
    assert!(has("use tokio::net;", "tokio"));
    assert!(has("let map: HashMap<u8, u8>;", "HashMap"));
    assert!(!has("let autokio = 1;", "tokio"));
    assert!(!has("// no tokio here", "tokio"));
    assert!(!has("let random_things = brand::new();", "rand::"));
    assert!(has("use crate::daemon::shell::Driver;", "daemon::shell"));
}

/// What operators are told to type next is a command that there is.
#[test]
fn every_command_that_is_recommended_exists() {
    use clap::CommandFactory;
    let cli = isx::ctl::args::Cli::command();
    let mut found = Vec::new();
    sources(Path::new("src"), &mut found);
    let mut count = 0;
    for path in found {
        let text = std::fs::read_to_string(&path).expect("readable");
        for (at, _) in text.match_indices("isxctl ") {
            if !text[..at].ends_with(['"', '`']) {
                continue;
            }
            let rest = text[at + "isxctl ".len()..].lines().next().unwrap_or_default();
            let is_word = |word: &&str| {
                word.starts_with(|c: char| c.is_ascii_lowercase())
                    && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
            };
            let words = rest.split([' ', '"', '`']).take_while(is_word);
            let mut command = &cli;
            for word in words {
                match command.find_subcommand(word) {
                    Some(known) => command = known,
                    // A key, a topic, or a service by its name (`isxctl campaign put`).
                    None if !command.has_subcommands() || word == "help" => break,
                    None => panic!("{}: there is no `isxctl {rest}`: `{word}` is unknown", path.display()),
                }
            }
            count += 1;
        }
    }
    assert!(count > 100, "{count} commands were found");
}
