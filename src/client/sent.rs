//! What became of the messages that a write sent.
use super::{Client, ClientError, unexpected};
use crate::protocol::activity::{Body, PairView, Sent};
use crate::protocol::key::Position;
use crate::protocol::request::{Request, Response};

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivery {
    /// It is on its way; it will arrive.
    Pending,
    /// Its receiver has taken it.
    Applied,
    /// Its receiver did not want it, and the sender knows.
    Refused(String),
}

impl Client {
    /// What became of one message of a write of `sender`.
    pub async fn delivery(&self, sender: &Position, sent: &Sent) -> Result<Delivery, ClientError> {
        let to_receiver = self.pair(sender, &sent.to).await?;
        if to_receiver.session == sent.session && to_receiver.acked < sent.number {
            return Ok(Delivery::Pending);
        }
        // A refusal is a message of the receiver's. It counts when it has arrived: then the sender's mark is there, too.
        let back = self.pair(&sent.to, sender).await?;
        let is_refusal = |body: &Body| matches!(body, Body::Refused { session, number, .. } if (*session, *number) == (sent.session, sent.number));
        if back.outstanding.iter().any(|(_, body)| is_refusal(body)) {
            return Ok(Delivery::Pending);
        }
        let known = self.pair(sender, &sent.to).await?.rejections;
        let mut known = known.into_iter();
        let refusal = known.find(|r| (r.session, r.number) == (sent.session, sent.number));
        Ok(refusal.map_or(Delivery::Applied, |refusal| Delivery::Refused(refusal.reason)))
    }

    async fn pair(&self, from: &Position, to: &Position) -> Result<PairView, ClientError> {
        let (service, key) = from.parts();
        let request = Request::ShowPair {
            service: service.to_owned(),
            key: key.unwrap_or("").to_owned(),
            with: to.clone(),
        };
        match self.request(request).await? {
            Response::Pair(view) => Ok(*view),
            _ => Err(unexpected("show pair")),
        }
    }
}
