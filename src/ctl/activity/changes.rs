//! What one can do about a message that does not get on.
use super::list::{extend, sends_json};
use super::show::brings;
use super::*;

/// The pair as its sender has it, or that there is none.
pub(super) async fn pair_of(client: &Client, act: &Act) -> Result<(SendView, ActivityView), CtlError> {
    let (from, to) = (act.entity.position(), act.partner.position());
    let view = pairs::view(client, &from, Some(&to), None, LIST_ITEMS_MAX).await?;
    let sends = view.pairs.first().and_then(|pair| pair.sends.clone());
    let none = || {
        let text = format!("{} has no session open with {}", named(&from), named(&to));
        CtlError::new(exit::NOT_FOUND, text).next(format!("isxctl activity show {}", typed(&from)))
    };
    Ok((sends.ok_or_else(none)?, view))
}

pub(super) async fn change(env: &Environment, act: &Act, verb: &'static str, action: ActivityAction) -> Ended {
    let client = env.connect().await?;
    let done = async {
        let (sends, _) = pair_of(&client, act).await?;
        if act.dry_run {
            return Ok((sends, None));
        }
        let id = write(&client, act, action).await?;
        // A session that ended in the meantime is none.
        let after = pair_of(&client, act).await.map_or(sends, |(sends, _)| sends);
        Ok::<_, CtlError>((after, Some(id)))
    };
    let done = done.await;
    client.close().await;
    let (sends, id) = done?;
    print_change(env, act, verb, None, &sends, id)
}

/// Tries again at once; one message that was refused, or all of them, are sent once more.
pub(super) async fn retry(env: &Environment, act: &Act, message: Option<MessageName>) -> Ended {
    let Some(name) = message else {
        return change(env, act, "retry", ActivityAction::Retry).await;
    };
    let client = env.connect().await?;
    let done = async {
        let (sends, view) = pair_of(&client, act).await?;
        let (number, session) = (name.number, name.session.unwrap_or(sends.session));
        let known = |parked: &&ParkedView| (parked.session, parked.number) == (session, number);
        let Some(parked) = view.parked.iter().find(known) else {
            let (from, to) = (act.entity.position(), act.partner.position());
            let (one, other) = (named(&from), named(&to));
            let text = format!("{one} has no message {session}.{number} that {other} refused and that is parked");
            let see = format!("isxctl activity show {} {}", typed(&from), typed(&to));
            return Err(CtlError::new(exit::NOT_FOUND, text).next(see));
        };
        let taken = Taken::of_parked(parked, ("sent again", "would be sent again"));
        let id = match act.dry_run {
            true => None,
            false => Some(write(&client, act, ActivityAction::SendAgain { session, number }).await?),
        };
        Ok((sends, taken, id))
    };
    let done: Result<_, CtlError> = done.await;
    client.close().await;
    let (sends, taken, id) = done?;
    print_change(env, act, "retry", Some(taken), &sends, id)
}

pub(in crate::ctl) async fn cancel(env: &Environment, act: &Act, name: MessageName, confirm: Option<&str>) -> Ended {
    take_back(env, act, Some(name), confirm).await
}

/// One message that something is done about.
pub(super) struct Taken {
    session: u64,
    number: u64,
    body: Option<Body>,
    /// What is done with it, and what would be.
    words: (&'static str, &'static str),
}

impl Taken {
    fn of_parked(parked: &ParkedView, words: (&'static str, &'static str)) -> Self {
        Self {
            session: parked.session,
            number: parked.number,
            body: Some(parked.body.clone()),
            words,
        }
    }
}

/// Takes a message back, or gives one up that was refused: the one of this name, or the first.
pub(super) async fn take_back(env: &Environment, act: &Act, name: Option<MessageName>, confirm: Option<&str>) -> Ended {
    let verb = if name.is_some() { "cancel" } else { "skip" };
    if act.because.is_empty() {
        let text = format!("{verb} takes a message back for ever: those who come later want a reason");
        return Err(CtlError::new(exit::USAGE, text).next("the same with --because TEXT"));
    }
    let client = env.connect().await?;
    let done = async {
        let (sends, view) = pair_of(&client, act).await?;
        let (from, to) = (act.entity.position(), act.partner.position());
        let is_open = |name: MessageName| name.session.is_none_or(|session| session == sends.session);
        let is_it = |parked: &&ParkedView| match name {
            None => true,
            // A number alone is of the open session.
            Some(name) => (parked.session, parked.number) == (name.session.unwrap_or(sends.session), name.number),
        };
        if let Some(parked) = view.parked.iter().find(is_it) {
            let taken = Taken::of_parked(parked, ("given up", "would be given up"));
            if act.dry_run {
                return Ok((sends, taken, None));
            }
            let (session, number) = (parked.session, parked.number);
            let what = format!(
                "give up msg {session}.{number} ({}) from {} to {}",
                parked.body.action(),
                named(&from),
                named(&to)
            );
            severe(env, &what, &named(&from), confirm)?;
            let id = write(&client, act, ActivityAction::Drop { session, number }).await?;
            return Ok((sends, taken, Some(id)));
        }
        let number = name.map_or(sends.acked + 1, |name| name.number);
        let see = format!("isxctl activity show {} {}", typed(&from), typed(&to));
        if number <= sends.acked || number >= sends.next || !name.is_none_or(is_open) {
            let text = format!(
                "{} has no message {} outstanding for {}",
                named(&from),
                name.map_or_else(|| number.to_string(), |name| name.to_string()),
                named(&to)
            );
            return Err(CtlError::new(exit::NOT_FOUND, text).next(see));
        }
        // Of the first one it is known there whether it has been applied; if nobody can say, the sender decides.
        let there = pairs::view(&client, &to, Some(&from), None, 1).await.ok();
        let had = there.and_then(|view| view.pairs.first().and_then(|pair| pair.had));
        if had.is_some_and(|(session, last, _)| session == sends.session && number <= last) {
            let text = format!(
                "{} has applied message {number} already: it can't be taken back",
                named(&to)
            );
            return Err(CtlError::new(exit::CONFLICT, text).next(see));
        }
        let message = view.messages.into_iter().find(|message| message.number == number);
        let taken = Taken {
            session: sends.session,
            number,
            body: message.map(|message| message.body),
            words: ("taken back", "would be taken back"),
        };
        if act.dry_run {
            return Ok((sends, taken, None));
        }
        let what = taken.body.as_ref().map_or("a message", Body::action);
        let what = format!(
            "take back msg {}.{number} ({what}) from {} to {}",
            sends.session,
            named(&from),
            named(&to)
        );
        severe(env, &what, &named(&from), confirm)?;
        // By its number also where it is the first: another may be the first by the time this arrives.
        let id = write(&client, act, ActivityAction::Cancel { number }).await?;
        Ok((sends, taken, Some(id)))
    };
    let done = done.await;
    client.close().await;
    let (sends, taken, id) = done?;
    print_change(env, act, verb, Some(taken), &sends, id)
}

pub(super) async fn write(client: &Client, act: &Act, action: ActivityAction) -> Result<RequestId, CtlError> {
    let id = act.request_id.unwrap_or_else(RequestId::random);
    journal::note(&act.entity.service, &act.entity.key, id);
    let change = Change::Activity {
        with: act.partner.position(),
        action,
        by: String::new(),
        because: act.because.clone(),
    };
    client
        .write(Write {
            service: act.entity.service.clone(),
            key: act.entity.key.clone(),
            id,
            condition: Condition::Always,
            change,
        })
        .await?;
    Ok(id)
}

pub(super) fn print_change(
    env: &Environment,
    act: &Act,
    verb: &'static str,
    taken: Option<Taken>,
    sends: &SendView,
    id: Option<RequestId>,
) -> Ended {
    let (from, to) = (named(&act.entity.position()), named(&act.partner.position()));
    if env.format().is_json() {
        let mut object = json!({"schema": "isx.activity.change/1", "verb": verb, "entity": from, "partner": to,
                                "dryRun": act.dry_run, "because": act.because,
                                "requestId": id.map(|id| id.to_string())});
        match &taken {
            Some(taken) => {
                object["message"] = json!(format!("{}.{}", taken.session, taken.number));
                object["action"] = json!(taken.body.as_ref().map(Body::action));
            }
            None => extend(&mut object, sends_json(sends)),
        }
        return env.print_json(&object);
    }
    let pair = || format!("{} {}", typed(&act.entity.position()), typed(&act.partner.position()));
    let request = id.map_or_else(String::new, |id| format!("   request {id}"));
    match &taken {
        Some(taken) => {
            let what = taken
                .body
                .as_ref()
                .map_or_else(String::new, |body| format!("   {}   {}", body.action(), brings(body)));
            let (done, would) = taken.words;
            let word = if act.dry_run { would } else { done };
            let (session, number) = (taken.session, taken.number);
            let line = format!("{from} -> {to}   msg {session}.{number}{what}   {word}{request}");
            env.print(&format!("{line}\n"))?;
        }
        None => {
            let state = state(sends);
            let count = outstanding(sends);
            env.print(&format!("{from} -> {to}   {state}   {count} outstanding{request}\n"))?;
        }
    }
    if act.dry_run {
        env.say("dry run: nothing changed");
    } else if verb == "park" {
        env.say(&format!("go on with  isxctl activity unpark {}", pair()));
    } else {
        env.say(&format!("follow      isxctl activity show {}", pair()));
    }
    Ok(exit::OK)
}
