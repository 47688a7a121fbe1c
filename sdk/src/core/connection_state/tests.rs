//! Tests of the state of the connection.

use super::*;

const TIMEOUT: Duration = Duration::from_secs(10);

fn at(secs: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(secs)
}

fn state(source: &TokenSource) -> ConnectionState {
    ConnectionState::new(source, Backoff::default(), None)
}

fn logged_in() -> ConnectionState {
    let mut state = state(&TokenSource::Fixed("token".into()));
    assert_eq!(state.poll_due(at(0)), Due::Connect);
    assert_eq!(state.begin(at(0), &Tuning::default()), Event::Connect { alternate: None });
    assert!(state.on_connected(at(0), TIMEOUT) && !state.on_connected(at(0), TIMEOUT));
    state.on_welcome(at(0), &Welcome::default());
    assert!(state.is_logged_in());
    state
}

#[test]
fn each_phase_has_its_deadline_and_its_ending() {
    let mut state = state(&TokenSource::Fixed("token".into()));
    state.begin(at(0), &Tuning::default());
    assert_eq!((state.deadline(), state.poll_due(at(9))), (Some(at(10)), Due::Nothing));
    assert_eq!(state.poll_due(at(10)), Due::End(Ending::lost(Lost::ConnectFailed)));
    state.on_connected(at(10), TIMEOUT);
    assert_eq!(state.poll_due(at(20)), Due::End(Ending::lost(Lost::HandshakeTimeout)));
    state.on_welcome(at(11), &Welcome::default());
    assert_eq!((state.deadline(), state.poll_due(at(99))), (None, Due::Login));
    state.on_logout(at(12), TIMEOUT);
    assert!(state.is_closing() && state.has_socket() && !state.is_logged_in());
    assert_eq!(state.poll_due(at(22)), Due::End(Ending::Closed(ClosedWhy::LoggedOut)));
    state.close();
    assert_eq!((state.deadline(), state.on_socket_gone(at(23))), (None, None));
}

#[test]
fn a_lost_socket_needs_no_hangup_and_waits_grow() {
    let (mut state, mut random) = (logged_in(), Random::new(1));
    assert_eq!(state.on_socket_gone(at(1)), Some(Ending::lost(Lost::SocketGone)));
    assert!(!state.has_socket());
    let wait = state.on_lost(at(1), TIMEOUT, &mut random);
    assert!(wait >= TIMEOUT && state.deadline() == Some(at(1) + wait));
    state.on_network_changed(at(2));
    assert_eq!(state.poll_due(at(2)), Due::Connect);
}

#[test]
fn a_driver_that_proves_names_follows_any_address() {
    let mut random = Random::new(1);
    let mut follow = |alternates: &[&str], is_proved| {
        let mut state = state(&TokenSource::Ask);
        let alternates = alternates.iter().map(|place| (*place).to_owned()).collect();
        let known: [Arc<str>; 1] = ["listed:1".into()];
        state.on_go_away(at(0), &GoAway { window_ms: 0, alternates }, &known, is_proved, &mut random);
        state.alternate.as_deref().map(str::to_owned)
    };
    assert_eq!(follow(&["other:1", "LISTED:1"], false).as_deref(), Some("listed:1"));
    assert_eq!(follow(&["other:1", "listed:1"], true).as_deref(), Some("other:1"));
    let long = format!("{}:1", "x".repeat(260));
    assert_eq!(follow(&["", "other", "other:0", "other:x", ":1", "a b:1", "http://a:1", &long], true), None);
}

#[test]
fn go_away_leads_to_the_alternate_and_a_throttle_ends_by_itself() {
    let (mut state, mut random) = (logged_in(), Random::new(1));
    state.on_throttle(at(0), Duration::from_secs(1));
    assert!(state.is_throttled(at(0)) && state.has_throttle());
    assert_eq!((state.poll_due(at(1)), state.has_throttle()), (Due::Login, false));
    let alternates = vec!["other:1".to_owned()];
    let known = ["other:1".into()];
    state.on_go_away(at(8), &GoAway { window_ms: 1000, alternates }, &known, false, &mut random);
    assert_eq!(state.poll_due(at(9)), Due::Leave);
    assert_eq!(state.on_left(at(9), &mut random), Duration::ZERO);
    assert_eq!(state.poll_due(at(9)), Due::Connect);
    assert_eq!(state.begin(at(9), &Tuning::default()), Event::Connect { alternate: Some("other:1".into()) });
}

#[test]
fn a_token_that_has_expired_is_replaced_before_it_is_used() {
    let (mut state, mut random) = (state(&TokenSource::Ask), Random::new(1));
    assert_eq!(state.begin(at(0), &Tuning::default()), Event::TokenNeeded(TokenWhy::First));
    // A device whose clock is wrong takes it for expired: it is tried once all the same.
    assert!(state.on_token(Some("token".into()), Some(at(1))));
    assert_eq!(state.begin(at(0), &Tuning::default()), Event::Connect { alternate: None });
    state.on_lost(at(1), Duration::ZERO, &mut random);
    assert_eq!(state.begin(at(2), &Tuning::default()), Event::TokenNeeded(TokenWhy::Expired));
    assert!(state.on_token(Some("next".into()), Some(at(100))));
    for (second, is_used) in [(2, true), (90, true), (96, false)] {
        let order = state.begin(at(second), &Tuning::default());
        assert_eq!(order == Event::Connect { alternate: None }, is_used, "{second}");
    }
}

#[test]
fn a_refused_token_is_replaced_at_once_and_the_next_ones_with_growing_waits() {
    let (mut state, mut random) = (state(&TokenSource::Ask), Random::new(1));
    for (code, why) in
        [(CloseReason::AuthFailed, TokenWhy::Refused), (CloseReason::TokenExpired, TokenWhy::Expired)]
    {
        state.on_welcome(at(0), &Welcome::default());
        let close = || Close { code: code.code(), ..Close::default() };
        let mut waits = Vec::new();
        for _ in 0..EXPIRED_MAX {
            let Ending::Lost { after, .. } = state.on_close(close()) else { panic!("it may ask again") };
            waits.push(state.on_lost(at(1), after, &mut random));
            assert_eq!(state.begin(at(1), &Tuning::default()), Event::TokenNeeded(why));
            assert!(state.on_token(Some("token".into()), None));
        }
        assert!(waits[0].is_zero() && waits[1..].iter().all(|wait| !wait.is_zero()), "{waits:?}");
        assert!(matches!(state.on_close(close()), Ending::Closed(_)));
    }
}

#[test]
fn an_expired_token_is_asked_for_again_at_most_three_times() {
    let mut state = state(&TokenSource::Ask);
    let close = || Close { code: CloseReason::TokenExpired.code(), ..Close::default() };
    assert_eq!(state.begin(at(0), &Tuning::default()), Event::TokenNeeded(TokenWhy::First));
    for _ in 0..EXPIRED_MAX {
        assert!(state.on_token(Some("token".into()), None));
        assert_eq!(state.begin(at(0), &Tuning::default()), Event::Connect { alternate: None });
        assert!(matches!(state.on_close(close()), Ending::Lost { .. }));
        assert_eq!(state.begin(at(0), &Tuning::default()), Event::TokenNeeded(TokenWhy::Expired));
    }
    assert!(matches!(state.on_close(close()), Ending::Closed(_)));
}

fn asking() -> (ConnectionState, Random) {
    let (mut random, servers) = (Random::new(1), Arc::new(["dispatch".into()]) as Arc<[Arc<str>]>);
    let endpoints = Endpoints::new(&servers, &mut random);
    let source = TokenSource::Fixed("token".into());
    (ConnectionState::new(&source, Backoff::default(), Some(endpoints)), random)
}

fn list(places: &[&str]) -> EndpointList {
    let places = places.iter().map(|place| (*place).into()).collect();
    EndpointList { places, lifetime: Duration::from_secs(60) }
}

#[test]
fn a_dispatch_server_is_asked_before_the_first_attempt_and_has_a_deadline() {
    let (mut state, mut random) = asking();
    let tuning = Tuning::default();
    assert_eq!(state.begin(at(0), &tuning), Event::EndpointsNeeded { server: "dispatch".into() });
    assert_eq!((state.deadline(), state.poll_due(at(4))), (Some(at(5)), Due::Nothing));
    assert_eq!(state.poll_due(at(5)), Due::GiveUpAsking);
    assert!(state.on_endpoints(at(5), Err(DispatchFault::TimedOut), &mut random));
    assert_eq!(state.begin(at(5), &tuning), Event::Connect { alternate: None });
    let late = state.on_endpoints(at(6), Ok(list(&["late:1"])), &mut random);
    assert!(!late, "nobody waits for the answer any more");
}

#[test]
fn attempts_go_through_the_list_and_an_address_of_a_gateway_goes_first() {
    let (mut state, mut random) = asking();
    let tuning = Tuning::default();
    state.begin(at(0), &tuning);
    assert!(state.on_endpoints(at(0), Ok(list(&["a:1", "b:1"])), &mut random));
    assert_eq!(state.begin(at(0), &tuning), Event::Connect { alternate: Some("a:1".into()) });
    state.on_lost(at(1), Duration::ZERO, &mut random);
    assert_eq!(state.begin(at(1), &tuning), Event::Connect { alternate: Some("b:1".into()) });
    state.on_connected(at(1), TIMEOUT);
    state.on_welcome(at(1), &Welcome::default());
    let go_away = GoAway { window_ms: 0, alternates: vec!["c:1".to_owned()] };
    state.on_go_away(at(9), &go_away, &[], true, &mut random);
    assert!(state.on_left(at(9), &mut random).is_zero());
    assert_eq!(state.begin(at(9), &tuning), Event::Connect { alternate: Some("c:1".into()) });
    // The gateway of before has asked to leave, and it was the last one of the list.
    state.on_lost(at(10), Duration::ZERO, &mut random);
    assert!(matches!(state.begin(at(10), &tuning), Event::EndpointsNeeded { .. }));
}
