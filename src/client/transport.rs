//! TLS and QUIC settings of the dialling side.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::error::ConnectError;
use super::options::Identity;
use crate::security::ca::read_key;
use crate::security::tls;

/// A connection on which nothing arrives for this long is gone. The node's own limit counts too: the shorter one holds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(3);
/// An idle connection proves that it lives this often.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// What may be under way on the one stream. Unit: bytes.
const STREAM_WINDOW: u32 = 16 << 20;
/// What may be under way on a connection. Unit: bytes.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Packets that may arrive before one is acknowledged, so that a batch costs one acknowledgement.
const ACK_EVERY: u32 = 10;
/// Longest wait before an acknowledgement.
const ACK_DELAY: Duration = Duration::from_millis(5);
/// Largest datagram to try for within one machine, where packets cost by number more than by size. Unit: bytes.
const MTU_LOOPBACK: u16 = 8192;
/// The same between machines: what fits an Ethernet frame. Unit: bytes.
const MTU_NETWORK: u16 = 1452;
/// Socket buffers asked for; the kernel may give less. Unit: bytes.
const SOCKET_BUFFER: usize = 4 << 20;

pub(super) fn client_config(identity: &Identity, endpoints: &[String]) -> Result<quinn::ClientConfig, ConnectError> {
    let ca = text(&identity.ca, "certificate authority")?;
    let certificate = text(&identity.certificate, "client certificate")?;
    let key = read_key(&identity.key).map_err(|error| unusable(&identity.key, "client key", &error))?;
    let mut config = tls::client_config(&ca, &certificate, &key)
        .map_err(|error| unusable(&identity.certificate, "client certificate", &error))?;
    let mut mtu = quinn::MtuDiscoveryConfig::default();
    let is_local = endpoints.iter().all(|endpoint| {
        ["127.", "localhost:", "[::1]:"]
            .iter()
            .any(|here| endpoint.starts_with(here))
    });
    mtu.upper_bound(if is_local { MTU_LOOPBACK } else { MTU_NETWORK });
    let mut acks = quinn::AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(ACK_EVERY.into())
        .max_ack_delay(Some(ACK_DELAY));
    let idle = IDLE_TIMEOUT.try_into().expect("three seconds fit a QUIC integer");
    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(0u32.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(CONNECTION_WINDOW.into())
        .mtu_discovery_config(Some(mtu))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(None);
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// A UDP endpoint with room for bursts.
pub(super) fn bind() -> io::Result<quinn::Endpoint> {
    // The IPv6 socket also reaches IPv4; hosts without IPv6 have only the other.
    let socket = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)) {
        Ok(socket) => socket,
        Err(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
    };
    let state = quinn::udp::UdpSocketState::new((&socket).into())?;
    // Less than asked for is fine: the default is.
    let _ = state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER);
    let _ = state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER);
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(MTU_LOOPBACK).map_err(io::Error::other)?;
    let runtime = quinn::default_runtime().ok_or_else(|| io::Error::other("no tokio runtime"))?;
    quinn::Endpoint::new(config, None, socket, runtime)
}

fn text(path: &Path, what: &'static str) -> Result<String, ConnectError> {
    std::fs::read_to_string(path).map_err(|error| unusable(path, what, &error))
}

fn unusable(path: &Path, what: &'static str, mut error: &dyn std::error::Error) -> ConnectError {
    let mut reason = error.to_string();
    while let Some(source) = error.source() {
        reason = format!("{reason}: {source}");
        error = source;
    }
    ConnectError::Identity {
        what,
        path: path.to_owned(),
        reason,
    }
}
