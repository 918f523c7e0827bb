//! Properties of everything that reads what others wrote: round trips are exact, garbage never
//! panics, nothing grows beyond its bound.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use underpass_proto::key::KeyPair;
use underpass_proto::wire::{
    Codes, Deregister, Elsewhere, Ended, EndedCode, FRAME_MAX, Hello, KeepAlive, Open, Opened,
    Probe, Probed, RELAYS_MAX, Refused, RefusedCode, Registered, Welcome,
};
use underpass_proto::*;

fn name() -> impl Strategy<Value = HycoName> {
    "[a-zA-Z][a-zA-Z0-9-]{4,48}[a-zA-Z0-9]".prop_map(|text| text.parse().expect("made by the rule"))
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![
        "[a-zA-Z0-9]([a-zA-Z0-9_-]{0,20}[a-z0-9])?(\\.[a-z]([a-z0-9-]{0,20}[a-z0-9])?){0,4}\\.?"
            .prop_filter_map("numbers alone are no name", |text| text.parse().ok()),
        any::<u32>().prop_map(|ip| Host::V4(Ipv4Addr::from(ip))),
        any::<u128>().prop_map(|ip| Host::V6(Ipv6Addr::from(ip))),
        Just(
            format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61))
                .parse()
                .expect("the longest name")
        ),
    ]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (host(), any::<NonZeroU16>()).prop_map(|(host, port)| Endpoint { host, port })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|ip| IpAddr::V4(ip.into())),
        any::<u128>().prop_map(|ip| IpAddr::V6(ip.into()))
    ];
    (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn rule() -> impl Strategy<Value = Rule> {
    select(vec![Rule::Listen, Rule::Send])
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        any::<[u8; 32]>().prop_map(Key::from_random),
        "[!-:<-~]{1,256}".prop_map(|text| text.parse().expect("made by the rule"))
    ]
}

fn register() -> impl Strategy<Value = Register> {
    (
        name(),
        rule(),
        any::<[u8; 8]>(),
        any::<[u8; 16]>(),
        any::<u16>(),
        any::<u8>(),
        any::<[u8; 32]>(),
    )
        .prop_map(
            |(hyco, rule, key_id, nonce, weight, priority, proof)| Register {
                hyco,
                rule,
                key_id: KeyId(key_id),
                nonce: Nonce(nonce),
                weight,
                priority,
                proof: Proof(proof),
            },
        )
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (
            Just(1),
            select(vec![Role::Agent, Role::Sender]),
            any::<[u8; 16]>(),
            any::<[u8; 16]>()
        )
            .prop_map(|(version, role, agent_id, instance)| {
                Frame::Hello(Hello {
                    version,
                    role,
                    agent_id: AgentId(agent_id),
                    instance: Instance(instance),
                })
            }),
        (1_u8.., any::<u64>(), vec(endpoint(), 0..=RELAYS_MAX)).prop_flat_map(
            |(workers, relay_time_unix_ms, relays)| {
                (0..workers).prop_map(move |worker| {
                    Frame::Welcome(Welcome {
                        workers,
                        worker,
                        relay_time_unix_ms,
                        relays: relays.clone(),
                    })
                })
            }
        ),
        register().prop_map(Frame::Register),
        (name(), endpoint(), any::<[u8; 32]>()).prop_map(|(hyco, endpoint, proof)| {
            Frame::Registered(Registered {
                hyco,
                endpoint,
                relay_proof: Proof(proof),
            })
        }),
        (
            name(),
            (1_u8..=3).prop_filter_map("a code", RefusedCode::from_u8)
        )
            .prop_map(|(hyco, code)| Frame::Refused(Refused { hyco, code })),
        (
            name(),
            (1_u8..=5).prop_filter_map("a code", EndedCode::from_u8)
        )
            .prop_map(|(hyco, code)| Frame::Ended(Ended { hyco, code })),
        name().prop_map(|hyco| Frame::Deregister(Deregister { hyco })),
        Just(Frame::Draining),
        (1..=u32::MAX).prop_map(|every_ms| Frame::KeepAlive(KeepAlive { every_ms })),
        Just(Frame::Check),
        (name(), any::<u64>(), endpoint())
            .prop_map(|(hyco, id, endpoint)| { Frame::Probe(Probe { hyco, id, endpoint }) }),
        (
            name(),
            any::<u64>(),
            option::of(select(FlowCode::ALL.to_vec())),
            any::<u32>(),
            any::<u32>(),
            option::of(address())
        )
            .prop_map(|(hyco, id, failed, resolve_us, dial_us, dialled)| {
                Frame::Probed(Probed {
                    hyco,
                    id,
                    failed,
                    resolve_us,
                    dial_us,
                    dialled,
                })
            }),
        any::<u8>().prop_map(|flow_max| Frame::Codes(Codes { flow_max })),
        (name(), any::<u64>(), endpoint(), address()).prop_map(
            |(hyco, flow, endpoint, application)| Frame::Open(Open {
                hyco,
                flow: FlowId(flow),
                endpoint,
                application
            })
        ),
        address().prop_map(|endpoint| Frame::Opened(Opened { endpoint })),
        any::<u8>().prop_map(|worker| Frame::Elsewhere(Elsewhere { worker })),
    ]
}

fn connection_string() -> impl Strategy<Value = ConnectionString> {
    let pins = vec(any::<[u8; 32]>().prop_map(Pin), 0..=2);
    (
        host(),
        1_u16..,
        name(),
        rule(),
        key(),
        pins,
        option::of(endpoint()),
    )
        .prop_map(
            |(relay_host, relay_port, name, rule, key, pins, target)| ConnectionString {
                relay_host,
                relay_port,
                name,
                rule,
                key,
                pins,
                target,
            },
        )
}

/// Cuts a stream into chunks at the given places, the way a network would.
fn cut(stream: &[u8], places: &[usize]) -> Vec<Bytes> {
    let mut places: Vec<usize> = places
        .iter()
        .map(|place| place % (stream.len() + 1))
        .collect();
    places.extend([0, stream.len()]);
    places.sort_unstable();
    places
        .windows(2)
        .map(|pair| Bytes::copy_from_slice(&stream[pair[0]..pair[1]]))
        .collect()
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
        frames in vec(frame(), 1..8),
        payload in vec(any::<u8>(), 0..200),
        places in vec(any::<usize>(), 0..12),
    ) {
        let mut stream = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut stream));
        let end_of_frames = stream.len();
        stream.extend(&payload);

        let (mut reader, mut got, mut rest) = (FrameReader::new(), Vec::new(), Vec::new());
        for chunk in cut(&stream, &places) {
            reader.push(chunk);
            while got.len() < frames.len() {
                match reader.next() {
                    Ok(Some(frame)) => got.push(frame),
                    Ok(None) => break,
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                }
            }
            if got.len() == frames.len() {
                rest.extend(reader.rest());
            }
        }
        prop_assert_eq!(&got, &frames);
        // Names are equal without case; the bytes tell that spelling is kept too.
        let again: Vec<u8> = got.iter().flat_map(Frame::to_vec).collect();
        prop_assert_eq!(&again[..], &stream[..end_of_frames]);
        prop_assert_eq!(rest, payload);
        prop_assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_frame_cut_short_is_never_a_frame(frame in frame(), place in any::<usize>()) {
        let whole = frame.to_vec();
        let kept = place % whole.len();
        let mut reader = FrameReader::new();
        reader.push(Bytes::copy_from_slice(&whole[..kept]));
        prop_assert_eq!(reader.next(), Ok(None));
        prop_assert_eq!(reader.finish(), if kept == 0 { Ok(()) } else { Err(FrameError::Truncated) });
    }

    #[test]
    fn a_body_with_a_byte_too_many_or_too_few_is_refused(frame in frame()) {
        let bytes = frame.to_vec();
        let (kind, body) = (bytes[0], &bytes[3..]);
        let mut longer = body.to_vec();
        longer.push(0);
        prop_assert!(matches!(Frame::decode(kind, &longer), Err(FrameError::LeftOver { .. })), "{frame:?}");
        if let Some(shorter) = body.len().checked_sub(1) {
            prop_assert_eq!(Frame::decode(kind, &body[..shorter]), Err(FrameError::Truncated));
        }
    }

    #[test]
    fn garbage_never_panics_and_what_is_read_of_it_is_written_the_same(kind in any::<u8>(), body in vec(any::<u8>(), 0..300)) {
        if let Ok(frame) = Frame::decode(kind, &body) {
            let version_is_ours = !matches!(&frame, Frame::Hello(hello) if hello.version != 1);
            // A literal address has one spelling here, a peer may use another; all else is exact.
            if version_is_ours {
                prop_assert_eq!(Frame::decode(kind, &frame.to_vec()[3..]), Ok(frame));
            }
        }
    }

    #[test]
    fn garbage_streams_never_panic_and_hold_at_most_one_frame(chunks in vec(vec(any::<u8>(), 0..2_000), 0..8)) {
        let mut reader = FrameReader::new();
        for chunk in chunks {
            reader.push(Bytes::from(chunk));
            while let Ok(Some(_)) | Err(FrameError::UnknownType(_)) = reader.next() {}
        }
    }

    #[test]
    fn frames_of_unknown_type_are_skipped_on_control_streams(frame in frame(), kind in 0x40_u8.., body in vec(any::<u8>(), 0..FRAME_MAX)) {
        let mut stream = vec![kind];
        stream.extend(u16::try_from(body.len()).expect("bounded").to_be_bytes());
        stream.extend(&body);
        frame.encode(&mut stream);
        let mut reader = FrameReader::new();
        reader.push(stream.into());
        prop_assert_eq!(reader.next_known(), Ok(Some(frame)));
    }

    #[test]
    fn connection_strings_round_trip_and_never_show_their_key(string in connection_string()) {
        let emitted = string.emit();
        prop_assert_eq!(emitted.parse::<ConnectionString>(), Ok(string.clone()));
        if string.key.expose().len() >= 16 {
            let shown = format!("{string} {string:?}");
            prop_assert!(!shown.contains(string.key.expose()));
        }
    }

    #[test]
    fn fields_in_any_order_and_case_mean_the_same(string in connection_string(), seed in any::<u64>()) {
        let emitted = string.emit();
        let mut fields: Vec<&str> = emitted.split(';').collect();
        let turn = usize::try_from(seed % 8).expect("small") % fields.len();
        fields.rotate_left(turn);
        let shuffled: Vec<String> = fields
            .iter()
            .map(|field| field.split_once('=').map_or_else(String::new, |(name, value)| format!(" {}={value}", name.to_uppercase())))
            .collect();
        prop_assert_eq!(shuffled.join(";").parse::<ConnectionString>(), Ok(string));
    }

    #[test]
    fn a_mutilated_connection_string_never_panics_and_no_error_repeats_the_key(
        string in connection_string(), place in any::<usize>(), with in "\\PC{0,3}", cut in 0_usize..30,
    ) {
        let emitted = string.emit();
        let start = place % (emitted.len() + 1);
        let end = (start + cut).min(emitted.len());
        if emitted.is_char_boundary(start) && emitted.is_char_boundary(end) {
            let text = format!("{}{with}{}", &emitted[..start], &emitted[end..]);
            let key = string.key.expose();
            if let Err(error) = text.parse::<ConnectionString>() {
                let shown = format!("{error} {error:?}");
                prop_assert!(key.len() < 12 || !shown.contains(&key[..12]));
            }
        }
    }

    #[test]
    fn tokens_hold_for_their_key_and_for_no_other(
        uri in "\\PC{0,60}", key in key(), other in key(), expires in any::<u64>(), now in any::<u64>(), of_hyco in option::of(rule()),
    ) {
        let rule = of_hyco.map_or(SasRule::Manage, SasRule::Hyco);
        let token = sas::make(&uri, rule, &key, expires);
        let read: SasToken = token.parse().expect("it was made here");
        let pair = |primary: &Key, secondary: Option<&Key>| KeyPair { primary: primary.clone(), secondary: secondary.cloned() };
        prop_assert_eq!(read.rule(), rule);
        prop_assert!(read.is_signed_by(&pair(&key, None)) && read.is_signed_by(&pair(&other, Some(&key))));
        prop_assert_eq!(read.is_signed_by(&pair(&other, None)), key == other);
        prop_assert_eq!(read.check_time(now).is_ok(), now < expires);
    }

    #[test]
    fn a_damaged_token_does_not_hold_and_garbage_never_panics(
        key in key(), place in any::<usize>(), with in "\\PC{0,3}", cut in 0_usize..30, garbage in "\\PC{0,80}", host in "\\PC{0,20}", path in "\\PC{0,40}",
    ) {
        let token = sas::make("http://relay.example.com/v1", SasRule::Manage, &key, 7);
        let place = place % (token.len() - cut.min(token.len()) + 1);
        let damaged = format!("{}{with}{}", &token[..place], &token[(place + cut).min(token.len())..]);
        let signed = KeyPair { primary: key, secondary: None };
        if let Ok(read) = damaged.parse::<SasToken>() {
            // What is signed is the resource and the time; the rule is no part of it.
            let same = read.covers("relay.example.com", "/v1") && read.check_time(6).is_ok() && read.check_time(7).is_err();
            prop_assert!(!read.is_signed_by(&signed) || same, "{damaged}");
        }
        for text in [garbage.clone(), format!("SharedAccessSignature {garbage}"), format!("SharedAccessSignature sr={garbage}&sig={garbage}&se=1&skn=manage")] {
            if let Ok(read) = text.parse::<SasToken>() {
                let _ = read.covers(&host, &path);
                prop_assert!(!read.is_signed_by(&signed));
            }
        }
    }

    #[test]
    fn texts_that_parse_are_displayed_the_way_they_parse(text in "\\PC{0,60}") {
        if let Ok(name) = text.parse::<HycoName>() {
            prop_assert_eq!(name.to_string(), text.clone());
        }
        if let Ok(host) = text.parse::<Host>() {
            prop_assert_eq!(host.to_string().parse(), Ok(host));
        }
        if let Ok(entry) = text.parse::<AllowEntry>() {
            prop_assert_eq!(entry.to_string().parse(), Ok(entry));
        }
    }

    #[test]
    fn endpoints_round_trip(endpoint in endpoint()) {
        prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
    }

    #[test]
    fn allow_entries_round_trip(net in any::<u128>(), prefix in 0_u8..=128, low in 1_u16.., high in 1_u16..) {
        let net = ipnet::Ipv6Net::new_assert(Ipv6Addr::from(net), prefix).trunc();
        let text = format!("[{net}]:{}-{}", low.min(high), low.max(high));
        if let Ok(entry) = text.parse::<AllowEntry>() {
            prop_assert_eq!(entry.to_string().parse(), Ok(entry));
        }
    }

    #[test]
    fn the_endpoint_of_a_string_is_permitted_and_its_neighbours_are_not(endpoint in endpoint()) {
        let list = AllowList(vec![AllowEntry::from(&endpoint)]);
        let refused = endpoint.host.ip().is_some_and(allow::is_refused_always);
        prop_assert_eq!(list.permits(&endpoint), !refused);
        let port = NonZeroU16::new(endpoint.port.get() ^ 1).unwrap_or(NonZeroU16::MAX);
        let neighbour = Endpoint { port, ..endpoint };
        prop_assert!(!list.permits(&neighbour));
    }

    #[test]
    fn a_proof_holds_for_its_own_register_key_and_session_alone(
        key in key(), other in key(), hyco in name(), nonce in any::<[u8; 16]>(), exporter in any::<[u8; 32]>(), rule in rule(),
        weight in any::<u16>(), priority in any::<u8>(), place in any::<usize>(),
    ) {
        prop_assume!(key != other);
        let exporter = Exporter(exporter);
        let register = Register::new(&key, hyco, rule, Nonce(nonce), weight, priority, &exporter);
        let pair = Some(KeyPair { primary: other.clone(), secondary: Some(key) });
        let only_other = Some(KeyPair { primary: other, secondary: None });
        let (keys, wrong_rule) = match rule {
            Rule::Listen => (HycoKeys { listen: pair.clone(), send: only_other.clone() }, HycoKeys { listen: only_other, send: pair }),
            Rule::Send => (HycoKeys { listen: only_other.clone(), send: pair.clone() }, HycoKeys { listen: pair, send: only_other }),
        };
        let check = |register: &Register, keys, exporter: &Exporter| proof::check_register(register, keys, exporter).map(|checked| checked.which);

        prop_assert_eq!(check(&register, Some(&keys), &exporter), Ok(Which::Secondary));
        prop_assert_eq!(check(&register, Some(&wrong_rule), &exporter), Err(NotAuthorised::WrongRule));
        let no_keys = HycoKeys::default();
        prop_assert_eq!(check(&register, Some(&no_keys), &exporter), Err(NotAuthorised::NoKeys));
        prop_assert_eq!(check(&register, None, &exporter), Err(NotAuthorised::UnknownName));

        let mut elsewhere = exporter;
        elsewhere.0[place % 32] ^= 1;
        prop_assert_eq!(check(&register, Some(&keys), &elsewhere), Err(NotAuthorised::WrongKey));

        // Every byte of a Register is covered: change one and it either is none or does not hold.
        let mut bytes = Frame::Register(register).to_vec();
        let at = 3 + place % (bytes.len() - 3);
        bytes[at] ^= 1;
        if let Ok(Frame::Register(changed)) = Frame::decode(bytes[0], &bytes[3..]) {
            prop_assert!(check(&changed, Some(&keys), &exporter).is_err());
        }
    }

    #[test]
    fn feed_messages_come_out_as_they_went_in_however_the_stream_is_cut(
        whys in vec("\\PC{0,40}", 1..5), number in any::<u64>(), places in vec(any::<usize>(), 0..8),
    ) {
        let messages: Vec<FeedMessage> = whys
            .into_iter()
            .map(|why| FeedMessage::Rejected { generation: Generation { start: 1, number }, why })
            .collect();
        let stream: Vec<u8> = messages.iter().flat_map(|message| feed::encode(message).expect("short").to_vec()).collect();
        let (mut reader, mut got) = (FeedReader::new(limits::REPORT_MAX), Vec::new());
        for chunk in cut(&stream, &places) {
            reader.push(&chunk);
            while let Some(message) = reader.next().expect("well formed") {
                got.push(message);
            }
        }
        prop_assert_eq!(got, messages);
        prop_assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn garbage_on_the_feed_never_panics(chunks in vec(vec(any::<u8>(), 0..200), 0..6), json in "\\PC{0,80}") {
        let mut reader = FeedReader::new(1_000);
        for chunk in chunks {
            reader.push(&chunk);
            while let Ok(Some(_)) = reader.next() {}
        }
        let mut reader = FeedReader::new(1_000);
        reader.push(&u32::try_from(json.len()).expect("short").to_be_bytes());
        reader.push(json.as_bytes());
        prop_assert!(reader.next().is_err(), "{}", json);
    }
}
