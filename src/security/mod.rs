//! Certificates and TLS: who is who.
//!
//! Each cluster has an authority of its own (`ca`). A node's certificate names its id (`n1.node.isx.internal`) and may
//! be shown by both ends of a connection; a client's names its holder and role (`ada.admin.isx.internal`) and may only
//! be shown by the dialling end. rustls verifies the chain before a byte of a request is read, `tls` then reads the
//! name. There is no other way to be somebody: no passwords, no plaintext mode.
pub mod ca;
pub mod tls;
