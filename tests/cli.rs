//! `isxctl` as its users see it: tests/cli/*.txt hold command lines and what they print, run against real clusters.
//!
//! In a file, `$ ` begins a command for `sh`; what follows is its standard output, then its standard error with `! ` before
//! each line, then its exit code unless that is 0. What differs from run to run (ids, times, sizes) is written `<...>`.
//! `ISX_GOLDEN=write cargo test --test cli` writes the files anew; the difference is reviewed like code.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use isx::client::context::Contexts;
use isx::ctl::dev::{NewNode, init};
use tempfile::TempDir;

/// A user's home with nothing in it, and a local cluster where one is wanted.
struct Place {
    dir: TempDir,
    has_cluster: bool,
}

impl Place {
    fn empty() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self {
            dir,
            has_cluster: false,
        }
    }

    /// Three nodes on ports that nobody uses, known as the current context, running.
    fn with_cluster() -> Self {
        let mut place = Self::empty();
        place.has_cluster = true;
        let sockets: Vec<std::net::UdpSocket> = (0..3)
            .map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("a port"))
            .collect();
        let nodes: Vec<NewNode> = sockets
            .iter()
            .zip(["a", "b", "c"])
            .enumerate()
            .map(|(at, (socket, zone))| NewNode {
                name: format!("n{}", at + 1),
                address: socket.local_addr().expect("bound").to_string(),
                zone: zone.to_owned(),
            })
            .collect();
        drop(sockets);
        let context = init(&place.path("dev"), "dev", &nodes, 3).expect("files");
        let mut contexts = Contexts::default();
        contexts.contexts.insert("dev".to_owned(), context);
        contexts.current = Some("dev".to_owned());
        contexts.write(&place.path("contexts.toml")).expect("writable");
        let up = place.run("isxctl dev up");
        assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
        place
    }

    /// The same, with the examples of schemas in its directory.
    fn with_schemas() -> Self {
        let place = Self::with_cluster();
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/schemas");
        for name in ["advertiser.toml", "campaign.toml", "profile.toml"] {
            std::fs::copy(examples.join(name), place.path(name)).expect("an example");
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        let programs = Path::new(env!("CARGO_BIN_EXE_isxctl")).parent().expect("a directory");
        let mut path = programs.as_os_str().to_owned();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command.args(["-c", line]).current_dir(self.dir.path());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ISX_")) {
            command.env_remove(name);
        }
        command
            .env("PATH", path)
            .env("HOME", self.path("home"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("ISX_DEV_DIR", self.path("dev"))
            .env("ISX_CONFIG", self.path("contexts.toml"))
            .env("COLUMNS", "100")
            .stdin(std::process::Stdio::null());
        command.output().expect("sh runs")
    }

    /// Runs a file's commands and compares what they print.
    fn check(&self, name: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli").join(name);
        let wanted = std::fs::read_to_string(&file).expect("the file");
        let mut found = String::new();
        for line in wanted.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                found += &format!("{line}\n{}", self.transcript(command));
            } else if line.starts_with('#') {
                found += &format!("\n{line}\n");
            }
        }
        let found = found.trim_start().to_owned();
        if std::env::var("ISX_GOLDEN").is_ok_and(|value| value == "write") {
            std::fs::write(&file, found).expect("writable");
            return;
        }
        let difference = wanted.lines().zip(found.lines()).position(|(a, b)| a != b);
        let context = |text: &str, at: usize| {
            text.lines()
                .skip(at.saturating_sub(4))
                .take(9)
                .collect::<Vec<_>>()
                .join("\n")
        };
        if let Some(at) = difference {
            let (wanted, found) = (context(&wanted, at), context(&found, at));
            panic!("{name}:{}: wanted\n{wanted}\n\nfound\n{found}\n", at + 1);
        }
        assert_eq!(wanted, found, "{name}");
    }

    fn transcript(&self, command: &str) -> String {
        let output = self.run(command);
        let mut text = self.steady(&String::from_utf8_lossy(&output.stdout));
        for line in self.steady(&String::from_utf8_lossy(&output.stderr)).lines() {
            text += &format!("! {line}\n");
        }
        match output.status.code() {
            Some(0) => {}
            code => text += &format!("[exit {}]\n", code.unwrap_or(-1)),
        }
        text
    }

    /// The text without what differs from run to run.
    fn steady(&self, text: &str) -> String {
        let dir = self.dir.path().to_string_lossy();
        let mut steady = String::new();
        for line in text.replace(&*dir, "<dir>").lines() {
            // A line that tells of load and of time and of nothing else.
            let varying = [
                "uptime    ",
                "traffic   ",
                "messages  ",
                "data      ",
                "directory led by ",
                "disk      ",
                "time      ",
            ];
            // How full the disk is may change between a plan and a look at it.
            if line.contains("% at its fullest") && line.contains(" -> ") {
                continue;
            }
            match varying.iter().find(|prefix| line.starts_with(*prefix)) {
                Some(prefix) => steady += &format!("{prefix}<varies>"),
                None => steady += &words(line),
            }
            steady.push('\n');
        }
        steady
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.has_cluster {
            self.run("isxctl dev down --wipe --yes");
        }
    }
}

/// A line with its varying words replaced.
fn words(line: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
    let mut out = String::new();
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (word, more) = rest.split_at(end);
        out += &steady_word(word, &out, more);
        let next = more.find(is_word).unwrap_or(more.len());
        out += &more[..next];
        rest = &more[next..];
    }
    out
}

fn steady_word(word: &str, before: &str, after: &str) -> String {
    let is_number = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let is_epoch = ["epoch ", "epoch <n> -> ", "cluster is at "]
        .iter()
        .any(|lead| before.ends_with(lead));
    let is_counted = |word: &str| word.starts_with(|c: char| c.is_ascii_digit());
    if word.len() == 28 && word.starts_with("r-") {
        "<request>".to_owned()
    } else if word.len() > 28 && word.starts_with("w-") {
        "<token>".to_owned()
    } else if before.ends_with("msg ") {
        // Pairs that say nothing to each other for five seconds count anew.
        "<msg>".to_owned()
    } else if word.len() == 20 && word.ends_with('Z') && word.as_bytes()[4] == b'-' {
        "<time>".to_owned()
    } else if word.starts_with("op-1") || word.starts_with("s-1") && word.len() == 6 {
        let (kind, _) = word.split_at(word.find('-').unwrap_or(0));
        format!("<{kind}>")
    } else if is_epoch && is_counted(word) {
        format!("<n>{}", word.trim_start_matches(|c: char| c.is_ascii_digit()))
    } else if after.starts_with(" ago") {
        "<span>".to_owned()
    } else if word.starts_with("127.0.0.1:") && word.len() > 12 {
        "<address>".to_owned()
    } else if is_number && (after.starts_with(" s ") || after.starts_with("/s)")) {
        "<n>".to_owned()
    } else if before.ends_with("down 1 (n2, ") || before.ends_with("(n2, ") || before.ends_with("n3, ") {
        "<span>".to_owned()
    } else {
        word.to_owned()
    }
}

#[test]
fn a_command_line_without_a_cluster() {
    Place::empty().check("alone.txt");
}

#[test]
fn entities_and_lists() {
    Place::with_cluster().check("entities.txt");
}

#[test]
fn changes_and_history() {
    Place::with_cluster().check("watch.txt");
}

#[test]
fn schemas_and_children() {
    Place::with_schemas().check("schemas.txt");
}

#[test]
fn what_entities_have_with_one_another() {
    Place::with_schemas().check("activities.txt");
}

#[test]
fn plans_rules_and_settings() {
    Place::with_cluster().check("operator.txt");
}

#[test]
fn a_cluster_in_trouble() {
    Place::with_cluster().check("trouble.txt");
}
