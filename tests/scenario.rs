//! Runs `tests/scenarios/*.txt`: each is a story about one shard, told in commands and in what the cores then did.
//!
//! A block is comment lines, command lines, `----` and what the runner saw; a blank line ends it. With `ISX_UPDATE=1`
//! the runner writes what it saw: review it like code.
//!
//! ```text
//! cluster 3 [cuts=h,p]          a cluster of one service, `campaign`; its nodes are started
//! show s-1                      tell about this shard only (the default)
//! elapse n1 until TEXT          n1's clock goes on until n1 says TEXT; the others' stand still
//! elapse n1 250                 ... by 250 ms
//! run 6000 n1 n2                time passes for these nodes as if they saw nobody else
//! deliver n1 n2                 what n1 has sent n2 so far arrives
//! deliver all | n1 n3           everything among all nodes | those nodes, until nobody has more to say
//! drop n1 n2 | all              forget what n1 has sent n2 | everything that is under way
//! disk n2 hold | flow           n2's disk does no write | does all it has taken
//! crash n2    restart n2
//! ask n1 get KEY | put KEY JSON | split s-1 KEY s-9 | transfer s-1 n2
//! ask n1 add s-1 n4 r1000 | promote s-1 r1000 [for r1] | remove s-1 r1
//! ask n1 freeze s-2 into s-1 | merge s-1 s-2 | bump s-1 | thaw s-2
//! answer n2,n3 500 put KEY JSON ask n2, let 500 ms pass among n2 and n3, tell the answers; also with all of the above, and
//!                               schema TOML, its lines separated by |
//! copies                        one line for each copy of the shard
//! quiet COMMAND                 do it without telling
//! ```
use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use isx::daemon::core::time::Span;
use isx::daemon::sim::World;
use isx::protocol::id::{NodeId, ReplicaId, RequestId, ShardId};
use isx::protocol::key::Position;
use isx::protocol::request::{Change, Condition, ReplicaChange, Request, Write};
use isx::protocol::schema::bundle::NewSchema;
use isx::protocol::shard_map::ShardDescriptor;

const SERVICE: &str = "campaign";

struct Runner {
    world: World,
    shard: ShardId,
    tag: u64,
}

impl Runner {
    fn command(&mut self, line: &str) -> Result<Vec<String>, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let node = |text: &str| text.parse::<NodeId>().map_err(|error| error.to_string());
        let all = self.world.nodes().to_vec();
        let mut lines = Vec::new();
        let done = match words[..] {
            ["quiet", ..] => {
                self.command(line.trim_start().trim_start_matches("quiet").trim())?;
                return Ok(Vec::new());
            }
            ["show", shard] => {
                self.shard = shard.parse().map_err(|error| format!("{error}"))?;
                Ok(())
            }
            ["copies"] => return Ok(self.world.copies(self.shard)),
            ["elapse", at, "until", ..] => {
                let text = line
                    .split_once("until")
                    .map(|(_, text)| text.trim())
                    .unwrap_or_default();
                let mut told = Vec::new();
                let said = self
                    .world
                    .elapse_until(node(at)?, self.shard, text, &mut told)
                    .map_err(|e| e.to_string())?;
                lines.extend(told);
                if !said {
                    lines.push(format!("{at} did not say `{text}` in 3 s"));
                }
                Ok(())
            }
            ["elapse", at, ms] => {
                let ms = ms.parse().map_err(|_| format!("`{ms}` is no number of milliseconds"))?;
                self.world.elapse(node(at)?, Span::millis(ms))
            }
            ["run", ms, ..] => {
                let ms = ms.parse().map_err(|_| format!("`{ms}` is no number of milliseconds"))?;
                let among = words[2..]
                    .iter()
                    .map(|word| node(word))
                    .collect::<Result<Vec<_>, _>>()?;
                self.world.run_among(&among, Span::millis(ms))
            }
            ["deliver", "all"] => self.world.deliver_all(&all),
            ["deliver", from, "|", to] => self.world.deliver_all(&[node(from)?, node(to)?]),
            ["deliver", from, to] => self.world.deliver(node(from)?, node(to)?).map(|_| ()),
            ["drop", "all"] => {
                for &from in &all {
                    for &to in &all {
                        self.world.drop_frames(from, to).map_err(|e| e.to_string())?;
                    }
                }
                Ok(())
            }
            ["drop", from, to] => self.world.drop_frames(node(from)?, node(to)?),
            ["disk", at, "hold"] => self.world.hold_disk(node(at)?, true),
            ["disk", at, "flow"] => self.world.hold_disk(node(at)?, false),
            ["crash", at] => self.world.crash_by_hand(node(at)?),
            ["restart", at] => self.world.start_by_hand(node(at)?),
            ["answer", among, ms, ..] => {
                let among = among.split(',').map(node).collect::<Result<Vec<_>, _>>()?;
                let ms = ms.parse().map_err(|_| format!("`{ms}` is no number of milliseconds"))?;
                let request = self.request(&words[3..], line)?;
                self.tag += 1;
                let asked = self.world.ask(among[0], self.tag, request);
                asked.map_err(|violation| violation.to_string())?;
                let ran = self.world.run_among(&among, Span::millis(ms));
                ran.map_err(|violation| violation.to_string())?;
                let mut told = self.world.told(self.shard);
                told.retain(|line| line.contains(" answers "));
                return Ok(told);
            }
            ["ask", at, ..] => {
                let request = self.request(&words[2..], line)?;
                self.tag += 1;
                self.world.ask(node(at)?, self.tag, request)
            }
            _ => return Err(format!("`{line}` is no command of this language")),
        };
        done.map_err(|violation| violation.to_string())?;
        lines.extend(self.world.told(self.shard));
        Ok(lines)
    }

    fn descriptor(&self, shard: &str) -> Result<ShardDescriptor, String> {
        let shard: ShardId = shard.parse().map_err(|error| format!("{error}"))?;
        Ok(self.world.shard(shard).ok_or("nobody knows that shard")?.clone())
    }

    fn change(&self, shard: &str, changes: Vec<ReplicaChange>, id: RequestId) -> Result<Request, String> {
        let shard = self.descriptor(shard)?;
        Ok(Request::ChangeReplicas {
            shard: shard.id,
            epoch: shard.epoch,
            changes,
            id,
        })
    }

    fn request(&self, words: &[&str], line: &str) -> Result<Request, String> {
        let id = RequestId(u128::from(self.tag) + 1);
        Ok(match *words {
            ["get", key] => Request::Get {
                service: SERVICE.to_owned(),
                key: key.to_owned(),
            },
            ["put", key, ..] => {
                let document = line
                    .split_once(key)
                    .map(|(_, document)| document.trim())
                    .unwrap_or_default();
                Request::Write(Write {
                    service: SERVICE.to_owned(),
                    key: key.to_owned(),
                    id,
                    condition: Condition::Always,
                    change: Change::Put(Bytes::from(document.to_owned())),
                })
            }
            ["schema", ..] => {
                let text = line
                    .split_once("schema")
                    .map(|(_, text)| text.trim())
                    .unwrap_or_default();
                let schema = NewSchema {
                    service: SERVICE.to_owned(),
                    text: text.replace(" | ", "\n"),
                    expected: 0,
                };
                Request::SetSchemas {
                    schemas: vec![schema],
                    allow_breaking: false,
                    because: String::new(),
                    dry_run: false,
                    id,
                }
            }
            ["split", shard, key, child] => {
                let shard: ShardId = shard.parse().map_err(|error| format!("{error}"))?;
                let epoch = self.world.shard(shard).ok_or("nobody knows that shard")?.epoch;
                Request::SplitShard {
                    shard,
                    epoch,
                    at: Position::new(SERVICE, key),
                    child: child.parse().map_err(|error| format!("{error}"))?,
                    id,
                }
            }
            ["add", shard, to, replica] => {
                let replica: ReplicaId = replica.parse().map_err(|error| format!("{error}"))?;
                let node = to.parse().map_err(|error| format!("{error}"))?;
                self.change(shard, vec![ReplicaChange::AddLearner { node, replica }], id)?
            }
            ["promote", shard, replica] => {
                let replica: ReplicaId = replica.parse().map_err(|error| format!("{error}"))?;
                self.change(shard, vec![ReplicaChange::Promote { replica }], id)?
            }
            ["promote", shard, replica, "for", victim] => {
                let replica: ReplicaId = replica.parse().map_err(|error| format!("{error}"))?;
                let victim: ReplicaId = victim.parse().map_err(|error| format!("{error}"))?;
                let remove = ReplicaChange::Remove { replica: victim };
                self.change(shard, vec![ReplicaChange::Promote { replica }, remove], id)?
            }
            ["remove", shard, replica] => {
                let replica: ReplicaId = replica.parse().map_err(|error| format!("{error}"))?;
                self.change(shard, vec![ReplicaChange::Remove { replica }], id)?
            }
            ["freeze", right, "into", left] => {
                let (right, left) = (self.descriptor(right)?, self.descriptor(left)?);
                Request::FreezeShard {
                    shard: right.id,
                    epoch: right.epoch,
                    into: left.id,
                    left_epoch: left.epoch,
                    id,
                }
            }
            ["merge", left, right] => {
                let (left, right) = (self.descriptor(left)?, self.descriptor(right)?);
                Request::MergeShards {
                    left: left.id,
                    left_epoch: left.epoch,
                    right: Box::new(right),
                    id,
                }
            }
            ["bump", shard] => {
                let shard = self.descriptor(shard)?;
                Request::BumpEpoch {
                    shard: shard.id,
                    epoch: shard.epoch,
                    id,
                }
            }
            ["thaw", right] => {
                let right = self.descriptor(right)?;
                let left = right.frozen.ok_or("that shard is not frozen")?.into;
                let proof = self.world.shard(left).ok_or("nobody knows the left shard")?.clone();
                Request::ThawShard {
                    shard: right.id,
                    proof: Box::new(proof),
                    id,
                }
            }
            ["transfer", shard, to] => Request::TransferLeader {
                shard: shard.parse().map_err(|error| format!("{error}"))?,
                to: to.parse().map_err(|error| format!("{error}"))?,
            },
            _ => return Err(format!("`{line}` asks for nothing that is known")),
        })
    }
}

fn begin(line: &str) -> Result<Runner, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (count, cuts) = match words[..] {
        ["cluster", count] => (count, ""),
        ["cluster", count, cuts] => (
            count,
            cuts.strip_prefix("cuts=").ok_or("what follows the count is cuts=..")?,
        ),
        _ => return Err(String::from("a scenario begins with `cluster 3` or the like")),
    };
    let count: usize = count.parse().map_err(|_| format!("`{count}` is no number of nodes"))?;
    let cuts: Vec<&str> = cuts.split(',').filter(|cut| !cut.is_empty()).collect();
    let mut runner = Runner {
        world: World::manual(count, SERVICE, &cuts),
        shard: ShardId(1),
        tag: 0,
    };
    for node in runner.world.nodes().to_vec() {
        runner.world.start_by_hand(node).map_err(|error| error.to_string())?;
    }
    runner.world.told(ShardId(1));
    Ok(runner)
}

/// The file as it should be: its comments and commands, and what they led to.
fn replay(text: &str) -> Result<String, String> {
    let mut runner: Option<Runner> = None;
    let mut out = String::new();
    for block in text.split("\n\n").filter(|block| !block.trim().is_empty()) {
        if !out.is_empty() {
            out.push('\n');
        }
        let mut lines = Vec::new();
        for line in block.lines().take_while(|line| line.trim() != "----") {
            writeln!(out, "{line}").expect("a string takes all");
            for command in line.split(';').map(str::trim) {
                if command.is_empty() || line.trim_start().starts_with('#') {
                    continue;
                }
                let told = match &mut runner {
                    None => {
                        runner = Some(begin(command)?);
                        Vec::new()
                    }
                    Some(runner) => runner
                        .command(command)
                        .map_err(|error| format!("`{command}`: {error}"))?,
                };
                lines.extend(told);
            }
        }
        if block.lines().any(|line| !line.trim_start().starts_with('#')) {
            writeln!(out, "----").expect("a string takes all");
        }
        for line in lines {
            writeln!(out, "{line}").expect("a string takes all");
        }
    }
    Ok(out)
}

#[test]
fn scenarios_go_as_they_are_told() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("tests/scenarios is there")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no scenarios in {}", folder.display());
    let update = std::env::var("ISX_UPDATE").is_ok_and(|value| value == "1");
    let mut failures = Vec::new();
    for path in files {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a readable file");
        match replay(&text) {
            Ok(is) if is == text => {}
            Ok(is) if update => std::fs::write(&path, is).expect("a writable file"),
            Ok(is) => {
                let at = is
                    .lines()
                    .zip(text.lines())
                    .position(|(a, b)| a != b)
                    .unwrap_or(is.lines().count().min(text.lines().count()));
                failures.push(format!(
                    "{name}, line {}: the file says\n    {}\nand it was\n    {}",
                    at + 1,
                    text.lines().nth(at).unwrap_or("(nothing)"),
                    is.lines().nth(at).unwrap_or("(nothing)")
                ));
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    assert!(
        failures.is_empty(),
        "{}\nreview and accept with: ISX_UPDATE=1 cargo test --test scenario",
        failures.join("\n")
    );
}
