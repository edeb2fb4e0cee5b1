//! Listings, page by page, over as many shards as it takes.
use super::{ClientError, unexpected};
use crate::protocol::change::prefix_range;
use crate::protocol::id::base32;
use crate::protocol::key::Position;
use crate::protocol::request::{LIST_ITEMS_MAX, ListItem, Request, Response};

/// What a listing should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListQuery {
    /// Service.
    pub service: String,
    /// Only keys that begin with this.
    pub prefix: String,
    /// Only keys from this one on; empty: from the first.
    pub from: String,
    /// Only keys before this one; `None`: to the last.
    pub to: Option<String>,
    /// At most this many; 0: as many as fit one answer.
    pub limit: u32,
    /// Whether documents are wanted, or keys and versions only.
    pub documents: bool,
    /// Where the page before this one stopped: its `next`.
    pub resume: Option<String>,
}

/// One page of a listing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListPage {
    /// In key order.
    pub items: Vec<ListItem>,
    /// What to ask for the next page with; `None` at the end. Survives splits and restarts.
    pub next: Option<String>,
}

/// Puts one page together from as many shards as it takes. `ask` sends a request and gives back what is no error.
pub(crate) async fn list<F>(query: &ListQuery, ask: impl Fn(Request) -> F) -> Result<ListPage, ClientError>
where
    F: Future<Output = Result<Response, ClientError>>,
{
    let first = if query.from > query.prefix {
        &query.from
    } else {
        &query.prefix
    };
    let mut from = Position::new(&query.service, first);
    if let Some(token) = &query.resume {
        from = from.max(continuation(token, &query.service)?);
    }
    let mut to = Position::end_of(&query.service);
    if let Some(key) = &query.to {
        to = to.min(Position::new(&query.service, key));
    }
    to = to.min(prefix_range(&query.service, &query.prefix).end);
    let mut page = ListPage::default();
    let mut room = match query.limit {
        0 => LIST_ITEMS_MAX,
        limit => limit,
    };
    while from < to {
        if room == 0 {
            page.next = Some(format!("c-{}", base32().encode(&from.0)));
            break;
        }
        let request = Request::List {
            from,
            to: to.clone(),
            limit: room.min(LIST_ITEMS_MAX),
            documents: query.documents,
        };
        let Response::Listed { items, next } = ask(request).await? else {
            return Err(unexpected("list"));
        };
        room = room.saturating_sub(items.len() as u32);
        page.items.extend(items);
        match next {
            Some(next) => from = next,
            None => break,
        }
        // Without a limit a page is what one answer with entities in it holds.
        if query.limit == 0 && !page.items.is_empty() {
            room = 0;
        }
    }
    Ok(page)
}

fn continuation(token: &str, service: &str) -> Result<Position, ClientError> {
    let bytes = token
        .strip_prefix("c-")
        .and_then(|text| base32().decode(text.as_bytes()).ok());
    match bytes.map(|bytes| Position(bytes.into())) {
        Some(position) if position.parts().0 == service => Ok(position),
        _ => Err(ClientError::Continuation(token.to_owned())),
    }
}
