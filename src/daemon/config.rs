//! The configuration of `isxd`: a TOML file, overridden key by key by the environment, checked as a whole before
//! anything is opened.
//!
//! A key `section.key` is overridden by `ISX_SECTION_KEY`. Founders and first services have no such override: they must
//! be the same on each founder, so they belong into one file that is copied.
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use super::core::node::ServiceConfig;
use crate::protocol::id::{ClusterId, NodeId, base32};
use crate::protocol::key::{Position, check_entity_key, check_service};
use crate::protocol::shard_map::{Membership, NodeInfo};

/// The checked configuration of one node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its name, a label for people.
    pub cluster_name: String,
    /// This node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its failure domain.
    pub zone: String,
    /// Where it listens: UDP.
    pub listen: SocketAddr,
    /// Where peers and clients reach it, `host:port`.
    pub advertise: String,
    /// Where its data is.
    pub data_dir: PathBuf,
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The node's certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority's key, on nodes that may let others join.
    pub ca_key: Option<PathBuf>,
    /// What log lines look like.
    pub log_format: LogFormat,
    /// Which log lines are written: a level, or a filter such as `info,isx::daemon::shell=debug`.
    pub log_level: String,
    /// Threads that do network work and run the core. Unit: threads.
    pub io_threads: usize,
    /// Largest datagram to try for. Unit: bytes.
    pub mtu_max: u16,
    /// A connection that is silent for this long is gone.
    pub idle_timeout: Duration,
    /// How long a stop may take.
    pub stop_timeout: Duration,
    /// Members of a new cluster; to a node that joined, members to begin with.
    pub founders: Vec<NodeInfo>,
    /// Services of a new cluster.
    pub services: Vec<ServiceConfig>,
    /// Each setting, its value and where it came from, in the order of the file.
    pub effective: Vec<Effective>,
}

/// What log lines look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// JSON where standard error is the journal, else for people.
    Auto,
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

/// One setting with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// `section.key`.
    pub key: &'static str,
    /// As TOML.
    pub value: String,
    /// Where it came from.
    pub source: Source,
}

/// Where a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The file.
    File,
    /// The environment variable of this name.
    Environment(String),
    /// Not set.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::File => f.write_str("file"),
            Source::Environment(name) => write!(f, "environment, {name}"),
            Source::Default => f.write_str("default"),
        }
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, a wrong type.
    #[error("`{path}`: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value that can't be.
    #[error("`{path}`: {key}{}: {why}", origin(.source_of))]
    Value {
        /// The file.
        path: PathBuf,
        /// `section.key`.
        key: String,
        /// Where the value came from.
        source_of: Source,
        /// What is wrong with it.
        why: String,
    },
}

fn origin(source: &Source) -> String {
    match source {
        Source::Environment(name) => format!(" (from {name})"),
        Source::File | Source::Default => String::new(),
    }
}

impl Config {
    /// Reads and checks a file, with the overrides of this process' environment.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text, &|name| std::env::var(name).ok())
    }

    /// Checks the text of a file; relative paths are relative to `path`'s directory.
    pub fn parse(path: &Path, text: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let mut r = Resolver {
            path,
            environment,
            effective: Vec::new(),
        };
        let cluster = r.required("cluster.id", raw.cluster.id)?;
        let cluster_name = r.optional("cluster.name", raw.cluster.name, "isx".to_owned())?;
        let node: NodeId = r.required("node.id", raw.node.id.map(|id| id.to_string()))?;
        if node.0 == 0 {
            return Err(r.wrong("node.id", "node ids begin at 1"));
        }
        let name = r.optional("node.name", raw.node.name, node.to_string())?;
        r.label("node.name", &name)?;
        let zone = r.optional("node.zone", raw.node.zone, "default".to_owned())?;
        r.label("node.zone", &zone)?;
        let listen: SocketAddr = r.optional("node.listen", raw.node.listen, SocketAddr::from(([0, 0, 0, 0], PORT)))?;
        let advertise = r.optional("node.advertise", raw.node.advertise, listen.to_string())?;
        r.endpoint("node.advertise", &advertise)?;
        if advertise
            .parse()
            .is_ok_and(|address: SocketAddr| address.ip().is_unspecified())
        {
            return Err(r.wrong(
                "node.advertise",
                format!(
                    "nobody can reach {advertise}: name the host or address at which peers and clients reach this node"
                ),
            ));
        }
        let data_dir = r.optional("node.data_dir", raw.node.data_dir, "/var/lib/isx".to_owned())?;
        let ca = r.required::<String>("tls.ca", raw.tls.ca)?;
        let certificate = r.required::<String>("tls.certificate", raw.tls.certificate)?;
        let key = r.required::<String>("tls.key", raw.tls.key)?;
        let ca_key = r.optional("tls.ca_key", raw.tls.ca_key, String::new())?;
        let log_format = r.optional("log.format", raw.log.format, LogFormat::Auto)?;
        let log_level = r.optional("log.level", raw.log.level, "info".to_owned())?;
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&log_level) {
            return Err(r.wrong("log.level", format!("`{log_level}`: {error}")));
        }
        let io_threads = r.number("runtime.io_threads", raw.runtime.io_threads, 1, 1..=64)?;
        let stop_timeout_s = r.number("runtime.stop_timeout_s", raw.runtime.stop_timeout_s, 30, 1..=3600)?;
        let mtu_default = if listen.ip().is_loopback() {
            MTU_LOOPBACK
        } else {
            MTU_NETWORK
        };
        let mtu_max = r.number(
            "network.mtu_max",
            raw.network.mtu_max,
            u64::from(mtu_default),
            1200..=65_000,
        )?;
        let idle_ms = r.number(
            "network.idle_timeout_ms",
            raw.network.idle_timeout_ms,
            3000,
            500..=60_000,
        )?;

        let base = path.parent().unwrap_or(Path::new("."));
        let founders = founders(&r, raw.bootstrap.nodes)?;
        if let Some(me) = founders.iter().find(|founder| founder.id == node) {
            for (key, here, there) in [
                ("node.name", &name, &me.name),
                ("node.advertise", &advertise, &me.address),
                ("node.zone", &zone, &me.zone),
            ] {
                if here != there {
                    return Err(r.wrong(
                        key,
                        format!("it is `{here}` here and `{there}` in bootstrap.nodes, which must agree"),
                    ));
                }
            }
        }
        let services = match raw.bootstrap.services {
            Some(services) => services,
            None => vec![RawService::named("campaign"), RawService::named("profile")],
        };
        let services = first_services(&r, services, founders.len())?;
        Ok(Self {
            cluster,
            cluster_name,
            node,
            name,
            zone,
            listen,
            advertise,
            data_dir: base.join(data_dir),
            ca: base.join(ca),
            certificate: base.join(certificate),
            key: base.join(key),
            ca_key: (!ca_key.is_empty()).then(|| base.join(ca_key)),
            log_format,
            log_level,
            io_threads: io_threads as usize,
            mtu_max: mtu_max as u16,
            idle_timeout: Duration::from_millis(idle_ms),
            stop_timeout: Duration::from_secs(stop_timeout_s),
            founders,
            services,
            effective: r.effective,
        })
    }

    /// The settings in effect as a TOML text, each with its origin.
    pub fn print_effective(&self) -> String {
        let mut text = String::new();
        let mut section = "";
        for setting in &self.effective {
            let (this, key) = setting.key.split_once('.').expect("section.key");
            if this != section {
                let gap = if section.is_empty() { "" } else { "\n" };
                text.push_str(&format!("{gap}[{this}]\n"));
                section = this;
            }
            let line = format!("{key} = {}", setting.value);
            text.push_str(&format!("{line:<60}  # {}\n", setting.source));
        }
        for node in &self.founders {
            text.push_str(&format!(
                "\n[[bootstrap.nodes]]\nid = {}\nname = {}\naddress = {}\nzone = {}\n",
                node.id.0,
                quoted(&node.name),
                quoted(&node.address),
                quoted(&node.zone)
            ));
        }
        for service in &self.services {
            let cuts: Vec<String> = service
                .cuts
                .iter()
                .map(|cut| quoted(cut.parts().1.unwrap_or_default()))
                .collect();
            text.push_str(&format!(
                "\n[[bootstrap.services]]\nname = {}\nreplicas = {}\ncuts = [{}]\n",
                quoted(&service.name),
                service.replicas,
                cuts.join(", ")
            ));
        }
        text
    }
}

impl FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err("it is `auto`, `human` or `json`"),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

/// A service's key space cut into `count` even parts, by the first characters of keys that the router makes.
pub fn presplit_cuts(service: &str, count: u32) -> Vec<Position> {
    // Three digits of base 32, padded to a whole number of bytes below.
    const KEYS: u64 = 32 * 32 * 32;
    (1..u64::from(count))
        .map(|n| {
            let digits = n * KEYS / u64::from(count);
            let text = base32().encode(&(digits << 25).to_be_bytes()[3..]);
            Position::new(service, text[..3].trim_end_matches('0'))
        })
        .filter(|cut| *cut != Position::new(service, ""))
        .collect()
}

fn founders(r: &Resolver, raw: Vec<RawNode>) -> Result<Vec<NodeInfo>, ConfigError> {
    let mut founders: Vec<NodeInfo> = Vec::new();
    for (index, node) in raw.into_iter().enumerate() {
        let key = |field: &str| format!("bootstrap.nodes[{index}].{field}");
        if node.id == 0 {
            return Err(r.wrong(key("id"), "node ids begin at 1"));
        }
        let info = NodeInfo {
            id: NodeId(node.id),
            name: node.name.unwrap_or_else(|| NodeId(node.id).to_string()),
            address: node.address,
            zone: node.zone.unwrap_or_else(|| "default".to_owned()),
            membership: Membership::Active,
            store_id: 0,
            version: String::new(),
            overlay: Default::default(),
        };
        r.label(&key("name"), &info.name)?;
        r.label(&key("zone"), &info.zone)?;
        r.endpoint(&key("address"), &info.address)?;
        for other in &founders {
            for (field, same) in [
                ("id", other.id == info.id),
                ("name", other.name == info.name),
                ("address", other.address == info.address),
            ] {
                if same {
                    return Err(r.wrong(key(field), format!("{} has the same", other.id)));
                }
            }
        }
        founders.push(info);
    }
    Ok(founders)
}

fn first_services(r: &Resolver, raw: Vec<RawService>, founders: usize) -> Result<Vec<ServiceConfig>, ConfigError> {
    let mut services: Vec<ServiceConfig> = Vec::new();
    for (index, service) in raw.into_iter().enumerate() {
        let key = |field: &str| format!("bootstrap.services[{index}].{field}");
        check_service(&service.name).map_err(|error| r.wrong(key("name"), error.to_string()))?;
        if services.iter().any(|other| other.name == service.name) {
            return Err(r.wrong(key("name"), format!("`{}` is there twice", service.name)));
        }
        let replicas = service.replicas.unwrap_or(3.min(founders.max(1) as u32));
        if !(1..=7).contains(&replicas) {
            return Err(r.wrong(key("replicas"), "copies of a shard: 1 to 7"));
        }
        if founders > 0 && replicas as usize > founders {
            return Err(r.wrong(
                key("replicas"),
                format!("{replicas} copies need as many nodes; bootstrap.nodes names {founders}"),
            ));
        }
        let cuts = match (service.presplit, service.cuts) {
            (Some(_), Some(_)) => {
                return Err(r.wrong(key("cuts"), "give either `presplit` or `cuts`, not both"));
            }
            (presplit, None) => {
                let count = presplit.unwrap_or(1);
                if !(1..=PRESPLIT_MAX).contains(&count) {
                    return Err(r.wrong(key("presplit"), format!("shards to begin with: 1 to {PRESPLIT_MAX}")));
                }
                presplit_cuts(&service.name, count)
            }
            (None, Some(cuts)) => {
                for cut in &cuts {
                    check_entity_key(cut).map_err(|error| r.wrong(key("cuts"), error.to_string()))?;
                }
                if !cuts.is_sorted_by(|a, b| a.as_bytes() < b.as_bytes()) {
                    return Err(r.wrong(key("cuts"), "they must rise, each only once"));
                }
                cuts.iter().map(|cut| Position::new(&service.name, cut)).collect()
            }
        };
        services.push(ServiceConfig {
            name: service.name,
            replicas,
            cuts,
        });
    }
    let shards: usize = services.iter().map(|service| service.cuts.len() + 1).sum();
    if shards > FIRST_SHARDS_MAX {
        let text =
            format!("{shards} shards to begin with, and there may be {FIRST_SHARDS_MAX} of all services together");
        return Err(r.wrong("bootstrap.services".to_owned(), text));
    }
    Ok(services)
}

/// Finds a setting's value: environment, file, default; and remembers which it was.
struct Resolver<'a> {
    path: &'a Path,
    environment: &'a dyn Fn(&str) -> Option<String>,
    effective: Vec<Effective>,
}

impl Resolver<'_> {
    fn required<T: FromStr<Err: fmt::Display> + fmt::Display>(
        &mut self,
        key: &'static str,
        file: Option<String>,
    ) -> Result<T, ConfigError> {
        self.find(key, file)?.ok_or_else(|| {
            let why = format!("it is missing; set it in the file or by {}", variable(key));
            self.wrong(key, why)
        })
    }

    fn optional<T: FromStr<Err: fmt::Display> + fmt::Display>(
        &mut self,
        key: &'static str,
        file: Option<String>,
        default: T,
    ) -> Result<T, ConfigError> {
        if let Some(found) = self.find(key, file)? {
            return Ok(found);
        }
        let value = quoted(&default.to_string());
        self.note(key, value, Source::Default);
        Ok(default)
    }

    fn number(
        &mut self,
        key: &'static str,
        file: Option<u64>,
        default: u64,
        allowed: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let found = self.find::<u64>(key, file.map(|n| n.to_string()))?;
        let value = found.unwrap_or(default);
        if found.is_none() {
            self.note(key, default.to_string(), Source::Default);
        } else if let Some(last) = self.effective.last_mut() {
            last.value = value.to_string();
        }
        if !allowed.contains(&value) {
            let why = format!("{value} is not within {} to {}", allowed.start(), allowed.end());
            return Err(self.wrong(key, why));
        }
        Ok(value)
    }

    fn find<T: FromStr<Err: fmt::Display>>(
        &mut self,
        key: &'static str,
        file: Option<String>,
    ) -> Result<Option<T>, ConfigError> {
        let name = variable(key);
        let (text, source) = match ((self.environment)(&name), file) {
            (Some(text), _) => (text, Source::Environment(name)),
            (None, Some(text)) => (text, Source::File),
            (None, None) => return Ok(None),
        };
        let value = if key == "node.id" {
            text.trim_start_matches('n').to_owned()
        } else {
            quoted(&text)
        };
        self.note(key, value, source);
        match text.parse() {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(self.wrong(key, format!("`{text}`: {error}"))),
        }
    }

    fn note(&mut self, key: &'static str, value: String, source: Source) {
        self.effective.push(Effective { key, value, source });
    }

    fn wrong(&self, key: impl Into<String>, why: impl Into<String>) -> ConfigError {
        let key = key.into();
        let source_of = self
            .effective
            .iter()
            .find(|setting| setting.key == key)
            .map_or(Source::File, |setting| setting.source.clone());
        ConfigError::Value {
            path: self.path.to_owned(),
            key,
            source_of,
            why: why.into(),
        }
    }

    /// Names and zones stand in tables and commands: short, no spaces.
    fn label(&self, key: &str, text: &str) -> Result<(), ConfigError> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if (1..=63).contains(&text.len()) && text.bytes().all(fine) {
            return Ok(());
        }
        Err(self.wrong(key, format!("`{text}` is not 1 to 63 letters, digits, `-`, `_` or `.`")))
    }

    fn endpoint(&self, key: &str, text: &str) -> Result<(), ConfigError> {
        let host_and_port = text.rsplit_once(':').filter(|(host, port)| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let is_host = !host.contains(':') || host.parse::<IpAddr>().is_ok();
            !host.is_empty() && is_host && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        match host_and_port {
            Some(_) => Ok(()),
            None => Err(self.wrong(
                key,
                format!("`{text}` is not HOST:PORT, such as `n1.example.org:{PORT}`"),
            )),
        }
    }
}

/// The environment variable that overrides a key.
fn variable(key: &str) -> String {
    format!("ISX_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Where a node listens unless it is told otherwise.
pub const PORT: u16 = 7401;
/// Largest datagram to try for on a network: an Ethernet frame less IPv6, UDP and a tunnel. Unit: bytes.
const MTU_NETWORK: u16 = 1452;
/// The same within one machine, where packets cost by number more than by size. Unit: bytes.
const MTU_LOOPBACK: u16 = 8192;
/// Most shards a service begins with.
/// Shards of one service at the beginning. All first shards together are one entry of the directory's log.
const PRESPLIT_MAX: u32 = 8_192;
/// Shards of all services at the beginning.
const FIRST_SHARDS_MAX: usize = 16_384;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    cluster: RawCluster,
    #[serde(default)]
    node: RawSelf,
    #[serde(default)]
    tls: RawTls,
    #[serde(default)]
    log: RawLog,
    #[serde(default)]
    runtime: RawRuntime,
    #[serde(default)]
    network: RawNetwork,
    #[serde(default)]
    bootstrap: RawBootstrap,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCluster {
    id: Option<String>,
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSelf {
    id: Option<u64>,
    name: Option<String>,
    zone: Option<String>,
    listen: Option<String>,
    advertise: Option<String>,
    data_dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    ca: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
    ca_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: Option<String>,
    level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRuntime {
    io_threads: Option<u64>,
    stop_timeout_s: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    mtu_max: Option<u64>,
    idle_timeout_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawBootstrap {
    #[serde(default)]
    nodes: Vec<RawNode>,
    services: Option<Vec<RawService>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    id: u64,
    name: Option<String>,
    address: String,
    zone: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: String,
    replicas: Option<u32>,
    presplit: Option<u32>,
    cuts: Option<Vec<String>>,
}

impl RawService {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            replicas: None,
            presplit: None,
            cuts: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        [cluster]
        id = "00000000000000000000000004"
        [node]
        id = 2
        listen = "127.0.0.1:7402"
        data_dir = "n2"
        [tls]
        ca = "ca.pem"
        certificate = "n2.pem"
        key = "n2.key"
        [[bootstrap.nodes]]
        id = 2
        address = "127.0.0.1:7402"
    "#;

    fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/isx/n2.toml"), text, &|name| {
            let found = environment.iter().find(|(n, _)| *n == name)?;
            Some(found.1.to_owned())
        })
    }

    #[test]
    fn defaults_fill_what_is_not_said() {
        let config = parse(MINIMAL, &[]).expect("valid");
        assert_eq!(config.name, "n2");
        assert_eq!(config.advertise, "127.0.0.1:7402");
        assert_eq!(config.data_dir, Path::new("/etc/isx/n2"));
        assert_eq!(config.key, Path::new("/etc/isx/n2.key"));
        let names: Vec<_> = config.services.iter().map(|s| (s.name.as_str(), s.replicas)).collect();
        assert_eq!(names, [("campaign", 1), ("profile", 1)]);
    }

    #[test]
    fn the_environment_wins_and_the_print_says_so() {
        let config = parse(MINIMAL, &[("ISX_LOG_LEVEL", "debug"), ("ISX_NETWORK_MTU_MAX", "1300")]).expect("valid");
        assert_eq!((config.log_level.as_str(), config.mtu_max), ("debug", 1300));
        let print = config.print_effective();
        assert!(print.contains("# environment, ISX_LOG_LEVEL"), "{print}");
        assert!(print.contains("# default"), "{print}");
        // What is printed can be read again and means the same.
        let again = parse(&print, &[]).expect("valid");
        assert_eq!(again.mtu_max, 1300);
        assert_eq!(again.services, config.services);
        assert_eq!(again.founders, config.founders);
    }

    #[test]
    fn errors_name_the_file_the_key_and_the_reason() {
        let with = |from: &str, to: &str| parse(&MINIMAL.replace(from, to), &[]).expect_err("invalid").to_string();
        for (from, to, wanted) in [
            (
                "id = 2\n        listen",
                "id = 0\n        listen",
                &["node.id", "begin at 1"][..],
            ),
            ("[cluster]", "[cluster]\ncolour = 1", &["colour", "line 3"]),
            (
                "127.0.0.1:7402\"\n        data",
                "0.0.0.0:7402\"\n        data",
                &["node.advertise", "nobody can reach"],
            ),
            ("key = \"n2.key\"", "", &["tls.key", "ISX_TLS_KEY"]),
            (
                "address = \"127.0.0.1:7402\"",
                "address = \"127.0.0.1\"",
                &["bootstrap.nodes[0].address", "HOST:PORT"],
            ),
            (
                "address = \"127.0.0.1:7402\"",
                "address = \"127.0.0.1:7403\"",
                &["node.advertise", "must agree"],
            ),
        ] {
            let error = with(from, to);
            assert!(error.contains("/etc/isx/n2.toml"), "{error}");
            assert!(wanted.iter().all(|w| error.contains(w)), "{error}");
        }
        let error = parse(MINIMAL, &[("ISX_NODE_LISTEN", "here")])
            .expect_err("invalid")
            .to_string();
        assert!(error.contains("ISX_NODE_LISTEN"), "{error}");
        let more = format!("{MINIMAL}\n[[bootstrap.services]]\nname = \"campaign\"\nreplicas = 3");
        let error = parse(&more, &[]).expect_err("invalid").to_string();
        assert!(error.contains("bootstrap.services[0].replicas"), "{error}");
    }

    #[test]
    fn presplit_cuts_are_even_and_rise() {
        assert!(presplit_cuts("campaign", 1).is_empty());
        let text = |count| -> Vec<String> {
            let cuts = presplit_cuts("campaign", count);
            cuts.iter().map(|cut| cut.parts().1.unwrap_or("?").to_owned()).collect()
        };
        assert_eq!(text(2), ["g"]);
        assert_eq!(text(4), ["8", "g", "r"]);
        for count in [3, 7, 64, 1024] {
            let cuts = presplit_cuts("campaign", count);
            assert_eq!(cuts.len(), count as usize - 1);
            assert!(cuts.is_sorted_by(|a, b| a < b));
        }
    }
}
