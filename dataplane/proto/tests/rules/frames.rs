//! Codes and frames.

use underpass_proto::wire::{FRAME_MAX, Hello};
use underpass_proto::*;

#[test]
fn a_code_of_a_later_version_is_said_as_one_that_the_other_side_knows() {
    let before = FlowCode::MAX_UNANNOUNCED;
    assert_eq!(
        FlowCode::NoSourcePort.known_up_to(before),
        FlowCode::EndpointUnreachable
    );
    assert_eq!(
        FlowCode::NameServerSilent.known_up_to(before),
        FlowCode::NameNotFound
    );
    for code in FlowCode::ALL {
        assert_eq!(code.known_up_to(FlowCode::MAX), code);
        let known = code.known_up_to(before);
        assert!(known.to_u32() <= u32::from(before), "{code:?}");
        assert_eq!(known.is_refusal(), code.is_refusal(), "{code:?}");
    }
    let highest = FlowCode::ALL.map(FlowCode::to_u32).into_iter().max();
    assert_eq!(highest, Some(FlowCode::MAX.into()));
}

#[test]
fn codes_keep_their_numbers_and_name_who_failed() {
    for code in FlowCode::ALL {
        assert_eq!(FlowCode::from_u64(u64::from(code.to_u32())), Some(code));
    }
    assert_eq!(FlowCode::from_u64(u64::MAX), None);
    assert_eq!(SessionCode::from_u64(7), Some(SessionCode::NoRegistration));
    assert_eq!(
        Ending::said(FlowCode::Reset, Side::Agent).to_string(),
        "endpoint: reset"
    );
    assert_eq!(
        Ending::said(FlowCode::Reset, Side::Relay).to_string(),
        "application: reset"
    );
    assert_eq!(
        Ending::said(FlowCode::EndpointRefused, Side::Agent).to_string(),
        "endpoint: refused"
    );
    assert_eq!(Ending::clean(Side::Endpoint).to_string(), "clean");
    let refusals: Vec<u32> = FlowCode::ALL
        .into_iter()
        .filter(|code| code.is_refusal())
        .map(FlowCode::to_u32)
        .collect();
    assert_eq!(refusals, [16, 17, 18, 19, 20, 21, 22, 23, 24, 28, 30, 31]);
}

#[test]
fn a_frame_over_the_limit_is_refused_by_its_header_alone() {
    let mut reader = FrameReader::new();
    reader.push(bytes::Bytes::from_static(&[0x01, 0x10, 0x01]));
    assert_eq!(
        reader.next(),
        Err(FrameError::TooLong { len: FRAME_MAX + 1 })
    );
}

#[test]
fn payload_behind_a_frame_is_handed_on_without_a_copy() {
    let mut bytes = Frame::Draining.to_vec();
    bytes.extend(b"payload");
    let chunk = bytes::Bytes::from(bytes);
    let place = chunk[3..].as_ptr();
    let mut reader = FrameReader::new();
    reader.push(chunk);
    assert_eq!(reader.next(), Ok(Some(Frame::Draining)));
    let rest = reader.rest();
    assert_eq!((&rest[..], rest.as_ptr()), (&b"payload"[..], place));
}

#[test]
fn the_hello_of_a_later_version_is_understood_as_far_as_ours_goes() {
    let hello = Hello {
        version: 2,
        role: Role::Agent,
        agent_id: AgentId([1; 16]),
        instance: Instance([2; 16]),
    };
    let mut body = Frame::Hello(hello.clone()).to_vec()[3..].to_vec();
    body.extend(b"more");
    assert_eq!(Frame::decode(0x01, &body), Ok(Frame::Hello(hello)));
}
