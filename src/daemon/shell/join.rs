//! Letting hosts in: tokens and certificates. The directory gives a host its id; the certificate for it is made here, on
//! a node that holds the authority's key.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ring::digest;

use super::clients::Session;
use super::disk::chain;
use crate::daemon::core::input::SessionId;
use crate::protocol::error::{Code, WireError};
use crate::protocol::id::{ClusterId, NodeId, RequestId};
use crate::protocol::message::{Principal, Role};
use crate::protocol::request::{Joined, Request, Response};
use crate::protocol::shard_map::{Membership, NodeInfo, ShardMap};
use crate::security::ca::{Approval, Authority};

/// The session of requests that the shell makes itself.
pub(super) const INTERNAL: SessionId = SessionId(0);

/// Hosts that are about to join.
pub(super) struct Joins {
    cluster: ClusterId,
    authority: Option<Authority>,
    waiting: BTreeMap<u64, Waiting>,
    next_tag: u64,
}

struct Waiting {
    session: SessionId,
    tag: u64,
    csr_pem: String,
}

/// What becomes of a request.
pub(super) enum Intercepted {
    /// Answered at once.
    Answer(Response),
    /// Something for the core, under the session and tag at which its answer is wanted.
    Pass {
        session: SessionId,
        tag: u64,
        principal: Principal,
        request: Request,
    },
}

impl Joins {
    pub(super) fn new(cluster: ClusterId, authority: Option<Authority>) -> Self {
        Self {
            cluster,
            authority,
            waiting: BTreeMap::new(),
            next_tag: 1,
        }
    }

    /// Looks whether a request is about joining.
    pub(super) fn intercept(&mut self, session: &Arc<Session>, tag: u64, request: Request) -> Intercepted {
        match request {
            Request::CreateToken { ttl_s, approve } => {
                Intercepted::Answer(self.create_token(&session.principal, ttl_s, approve))
            }
            Request::Join {
                token,
                csr_pem,
                name,
                address,
                zone,
            } => {
                let membership = match self.check(&token, &session.principal) {
                    Err(error) => return Intercepted::Answer(Response::Error(error)),
                    Ok(Approval::NotNeeded) => Membership::Joining,
                    Ok(Approval::Needed) => Membership::Pending,
                };
                let own_tag = self.next_tag;
                self.next_tag += 1;
                // The same host that asks again with the same key means the same node.
                let id = digest::digest(&digest::SHA256, csr_pem.as_bytes());
                let id = u128::from_be_bytes(*id.as_ref().first_chunk().expect("32 bytes"));
                let waiting = Waiting {
                    session: session.id,
                    tag,
                    csr_pem,
                };
                self.waiting.insert(own_tag, waiting);
                let node = NodeInfo {
                    id: NodeId(0),
                    name,
                    address,
                    zone,
                    membership,
                    store_id: 0,
                    version: String::new(),
                    overlay: Default::default(),
                };
                let principal = Principal {
                    name: "join".to_owned(),
                    role: Role::Node,
                };
                Intercepted::Pass {
                    session: INTERNAL,
                    tag: own_tag,
                    principal,
                    request: Request::RegisterNode {
                        node: Box::new(node),
                        id: RequestId(id),
                    },
                }
            }
            request => Intercepted::Pass {
                session: session.id,
                tag,
                principal: session.principal.clone(),
                request,
            },
        }
    }

    /// The directory's answer to a request of ours, as the host's answer.
    pub(super) fn complete(
        &mut self,
        tag: u64,
        response: Response,
        map: &ShardMap,
    ) -> Option<(SessionId, u64, Response)> {
        let waiting = self.waiting.remove(&tag)?;
        let response = match response {
            // No certificate before somebody says yes: without one it can talk to nobody.
            Response::Registered(node) if node.membership == Membership::Pending => {
                tracing::info!(name = node.name, address = node.address, "a host asks to be let in");
                let text = format!(
                    "{} ({}) waits to be let in: isxctl node approve {}",
                    node.name, node.id, node.name
                );
                Response::Error(WireError {
                    retry_after_ms: 1_000,
                    ..WireError::new(Code::NodePending, text)
                })
            }
            Response::Registered(node) => self.certify(node, &waiting.csr_pem, map),
            other => other,
        };
        Some((waiting.session, waiting.tag, response))
    }

    fn create_token(&self, principal: &Principal, ttl_s: u64, approve: bool) -> Response {
        let approval = if approve { Approval::Needed } else { Approval::NotNeeded };
        if principal.role < Role::Admin {
            let text = format!("making join tokens takes role admin; `{}` has less", principal.name);
            return Response::Error(WireError::new(Code::Forbidden, text));
        }
        match &self.authority {
            None => Response::Error(keyless()),
            Some(authority) => Response::Token {
                token: authority.create_token(Duration::from_secs(ttl_s), approval),
            },
        }
    }

    fn check(&self, token: &str, principal: &Principal) -> Result<Approval, WireError> {
        let authority = self.authority.as_ref().ok_or_else(keyless)?;
        authority.check_token(token).map_err(|error| {
            tracing::warn!(name = principal.name, "a join token was refused: {error}");
            WireError::new(Code::BadToken, format!("the join token is not valid: {error}"))
        })
    }

    fn certify(&self, node: NodeInfo, csr_pem: &str, map: &ShardMap) -> Response {
        let Some(authority) = &self.authority else {
            return Response::Error(keyless());
        };
        match authority.sign_node_request(csr_pem, node.id, &node.name) {
            Ok(certificate_pem) => {
                tracing::info!(node = %node.id, name = node.name, address = node.address, "{} may join", node.id);
                let members = map.nodes.values();
                Response::Joined(Box::new(Joined {
                    cluster: self.cluster,
                    certificate_pem,
                    ca_pem: authority.certificate_pem().to_owned(),
                    seeds: members
                        .filter(|n| n.id != node.id && n.membership != Membership::Gone)
                        .cloned()
                        .collect(),
                    node,
                }))
            }
            Err(error) => Response::Error(WireError::new(Code::BadRequest, chain(&error))),
        }
    }
}

fn keyless() -> WireError {
    WireError::new(
        Code::BadTarget,
        "this node does not hold the key of the cluster's authority (tls.ca_key); ask one that does",
    )
}
