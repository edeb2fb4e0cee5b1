//! Contexts: named clusters with their endpoints and the identity to use there, in one small file of the user's.
//!
//! ```toml
//! current = "dev"
//!
//! [contexts.dev]
//! cluster = "0123456789abcdefghjkmnpqrs"
//! endpoints = ["127.0.0.1:7401", "127.0.0.1:7402"]
//! ca = "/etc/isx/prod/ca.pem"
//! certificate = "/etc/isx/prod/admin.pem"
//! key = "/etc/isx/prod/admin.key"
//! ```
//! Paths that are not absolute are relative to the file.
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::protocol::id::ClusterId;

/// Why the contexts file can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// Reading or writing failed.
    #[error("cannot {what} the contexts file `{path}`")]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not the expected TOML.
    #[error("the contexts file `{path}` is not valid: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// No context of this name.
    #[error("there is no context `{name}` in `{path}`")]
    Missing {
        /// The name.
        name: String,
        /// The file.
        path: PathBuf,
        /// Names that do exist.
        known: Vec<String>,
    },
    /// None is named and none is current.
    #[error("no context is current in `{path}`")]
    NoCurrent {
        /// The file.
        path: PathBuf,
    },
    /// Neither `ISX_CONFIG` nor `HOME` is set.
    #[error("no place for the contexts file: neither ISX_CONFIG, XDG_CONFIG_HOME nor HOME is set")]
    NoPlace,
}

/// One cluster and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// The cluster's id, checked on connecting.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "cluster_text")]
    pub cluster: Option<ClusterId>,
    /// Nodes to begin with, `host:port`; the others are learnt.
    pub endpoints: Vec<String>,
    /// The cluster's certificate authority, PEM.
    pub ca: PathBuf,
    /// The client's certificate, PEM.
    pub certificate: PathBuf,
    /// The certificate's private key, PEM.
    pub key: PathBuf,
}

/// The contexts file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// The context used where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Contexts by name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Where the file is: `ISX_CONFIG`, or `isx/contexts.toml` in the user's configuration directory. `variable` looks
    /// up an environment variable.
    pub fn path(variable: impl Fn(&str) -> Option<String>) -> Result<PathBuf, ContextError> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        if let Some(file) = set("ISX_CONFIG") {
            return Ok(file.into());
        }
        // XDG base directory specification: a relative path there is to be ignored.
        if let Some(dir) = set("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
        {
            return Ok(dir.join("isx/contexts.toml"));
        }
        let home = set("HOME").ok_or(ContextError::NoPlace)?;
        Ok(Path::new(&home).join(".config/isx/contexts.toml"))
    }

    /// Reads the file; one that does not exist is empty.
    pub fn read(path: &Path) -> Result<Self, ContextError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => {
                return Err(ContextError::File {
                    what: "read",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        toml::from_str(&text).map_err(|error| ContextError::Format {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Writes the file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), ContextError> {
        let text = toml::to_string(self).map_err(|error| ContextError::Format {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
        let write = || {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            if let Some(dir) = dir {
                std::fs::create_dir_all(dir)?;
            }
            let draft = path.with_extension(format!("toml.{}", std::process::id()));
            std::fs::write(&draft, text)?;
            std::fs::rename(&draft, path)
        };
        write().map_err(|source| ContextError::File {
            what: "write",
            path: path.to_owned(),
            source,
        })
    }

    /// The context called `name`, or the current one, with its name and absolute paths. `path` is where the file was
    /// read from.
    pub fn find(&self, name: Option<&str>, path: &Path) -> Result<(String, Context), ContextError> {
        let name = match name.or(self.current.as_deref()) {
            Some(name) => name,
            None => return Err(ContextError::NoCurrent { path: path.to_owned() }),
        };
        let mut context = self.contexts.get(name).cloned().ok_or_else(|| ContextError::Missing {
            name: name.to_owned(),
            path: path.to_owned(),
            known: self.contexts.keys().cloned().collect(),
        })?;
        let dir = path.parent().unwrap_or(Path::new("."));
        for file in [&mut context.ca, &mut context.certificate, &mut context.key] {
            *file = dir.join(&file);
        }
        Ok((name.to_owned(), context))
    }
}

mod cluster_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use crate::protocol::id::ClusterId;

    pub fn serialize<S: Serializer>(id: &Option<ClusterId>, out: S) -> Result<S::Ok, S::Error> {
        match id {
            Some(id) => out.collect_str(id),
            None => out.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<ClusterId>, D::Error> {
        let text = String::deserialize(input)?;
        text.parse().map(Some).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_its_place_by_the_environment() {
        let with = |vars: &'static [(&str, &str)]| {
            Contexts::path(move |name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(with(&[("ISX_CONFIG", "x.toml"), ("HOME", "/h")]).ok(), path("x.toml"));
        assert_eq!(
            with(&[("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")]).ok(),
            path("/c/isx/contexts.toml")
        );
        assert_eq!(
            with(&[("XDG_CONFIG_HOME", "c"), ("HOME", "/h")]).ok(),
            path("/h/.config/isx/contexts.toml")
        );
        assert!(matches!(with(&[]), Err(ContextError::NoPlace)));
    }

    #[test]
    fn comes_back_as_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("deep/contexts.toml");
        let mut contexts = Contexts::read(&file).expect("missing is empty");
        assert_eq!(contexts, Contexts::default());
        let context = Context {
            cluster: Some(ClusterId(7)),
            endpoints: vec!["127.0.0.1:7401".into()],
            ca: "ca.pem".into(),
            certificate: "/abs/admin.pem".into(),
            key: "admin.key".into(),
        };
        contexts.contexts.insert("dev".into(), context);
        contexts.current = Some("dev".into());
        contexts.write(&file).expect("writable");
        let read = Contexts::read(&file).expect("readable");
        assert_eq!(read, contexts);
        let (name, found) = read.find(None, &file).expect("current");
        assert_eq!(name, "dev");
        assert_eq!(found.ca, dir.path().join("deep/ca.pem"));
        assert_eq!(found.certificate, Path::new("/abs/admin.pem"));
        assert!(matches!(
            read.find(Some("prod"), &file),
            Err(ContextError::Missing { known, .. }) if known == ["dev"]
        ));
    }
}
