//! What systemd is told (`sd_notify(3)`): a datagram with `NAME=value` lines to the socket in `$NOTIFY_SOCKET`.
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager; says nothing where there is none.
#[derive(Debug, Default)]
pub(super) struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From this process' environment.
    pub(super) fn from_environment() -> Self {
        let path = std::env::var("NOTIFY_SOCKET").ok();
        let for_us = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = std::env::var("WATCHDOG_USEC").ok().and_then(|usec| usec.parse().ok());
        Self {
            socket: path.and_then(|path| connect(&path)),
            watchdog: watchdog.filter(|_| for_us).map(Duration::from_micros),
        }
    }

    /// How often to report that we live: twice as often as we must.
    pub(super) fn watchdog_interval(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog).map(|limit| limit / 2)
    }

    /// The node serves.
    pub(super) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={status}"));
    }

    /// One line for `systemctl status`.
    pub(super) fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}"));
    }

    /// The node stops, and may take this long.
    pub(super) fn stopping(&self, status: &str, limit: Duration) {
        self.send(&format!("STOPPING=1\nSTATUS={status}"));
        self.extend(limit);
    }

    /// Starting or stopping goes on: do not lose patience for so long.
    pub(super) fn extend(&self, limit: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", limit.as_micros()));
    }

    /// We live.
    pub(super) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// A service manager that does not listen is no reason to fail.
    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(text.as_bytes());
        }
    }
}

fn connect(path: &str) -> Option<UnixDatagram> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name).ok()?,
        None => SocketAddr::from_pathname(path).ok()?,
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect_addr(&address).ok()?;
    // A full socket must not stop the node.
    socket.set_nonblocking(true).ok()?;
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_at_the_service_manager() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).expect("bound");
        let notifier = Notifier {
            socket: connect(path.to_str().expect("UTF-8")),
            watchdog: Some(Duration::from_secs(20)),
        };
        notifier.ready("serving");
        let mut buffer = [0; 256];
        let length = manager.recv(&mut buffer).expect("a datagram");
        assert_eq!(&buffer[..length], b"READY=1\nSTATUS=serving");
        assert_eq!(notifier.watchdog_interval(), Some(Duration::from_secs(10)));
        // Nobody there: nothing happens.
        Notifier::default().ready("serving");
    }
}
