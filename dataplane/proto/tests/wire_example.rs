//! Holds `WIRE.md` to its word: the bytes of its worked example are the bytes that this crate
//! writes and reads.

use underpass_proto::wire::{Elsewhere, Hello, Open, Opened, Registered, Welcome};
use underpass_proto::*;

const WIRE: &str = include_str!("../WIRE.md");

/// The bytes under a heading of the example: all hexadecimal pairs before `#` in the code block
/// that follows.
fn bytes_of(title: &str) -> Vec<u8> {
    let block = WIRE
        .split(&format!("**{title}**"))
        .nth(1)
        .expect("the title stands in WIRE.md");
    let block = block.split("```").nth(1).expect("a code block follows");
    let digits = block
        .lines()
        .skip(1)
        .map(|line| line.split('#').next().unwrap_or_default())
        .flat_map(str::split_whitespace);
    digits
        .map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal pairs"))
        .collect()
}

fn example() -> (Key, Register, Exporter) {
    let key: Key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
        .parse()
        .expect("a key");
    let exporter = Exporter(std::array::from_fn(|index| {
        u8::try_from(index).expect("small")
    }));
    let nonce = Nonce(std::array::from_fn(|index| {
        0xa0 + u8::try_from(index).expect("small")
    }));
    let hyco = "payroll-sql".parse().expect("a name");
    (
        key.clone(),
        Register::new(&key, hyco, Rule::Listen, nonce, 100, 0, &exporter),
        exporter,
    )
}

#[test]
fn the_worked_example_is_what_this_crate_says() {
    let (key, register, exporter) = example();
    let endpoint: Endpoint = "db01.corp:1433".parse().expect("an endpoint");
    let frames = [
        (
            "Hello",
            Frame::Hello(Hello {
                version: 1,
                role: Role::Agent,
                agent_id: AgentId([0x11; 16]),
                instance: Instance([0x22; 16]),
            }),
        ),
        (
            "Welcome",
            Frame::Welcome(Welcome {
                workers: 2,
                worker: 1,
                relay_time_unix_ms: 1_800_000_000_000,
                relays: vec!["relay.example.com:4433".parse().expect("an endpoint")],
            }),
        ),
        ("Register", Frame::Register(register.clone())),
        (
            "Registered",
            Frame::Registered(Registered {
                hyco: register.hyco.clone(),
                endpoint: endpoint.clone(),
                relay_proof: proof::relay_proof(&key, &register, &endpoint, &exporter),
            }),
        ),
        (
            "Open",
            Frame::Open(Open {
                hyco: register.hyco.clone(),
                flow: FlowId(7),
                endpoint,
                application: "10.0.0.9:50000".parse().expect("an address"),
            }),
        ),
        (
            "Opened",
            Frame::Opened(Opened {
                endpoint: "[fd00::5]:1433".parse().expect("an address"),
            }),
        ),
        ("Elsewhere", Frame::Elsewhere(Elsewhere { worker: 1 })),
    ];
    for (title, frame) in frames {
        let bytes = bytes_of(title);
        let shown: Vec<String> = frame
            .to_vec()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(frame.to_vec(), bytes, "{title} is {}", shown.join(" "));
        assert_eq!(Frame::decode(bytes[0], &bytes[3..]), Ok(frame));
    }
}

#[test]
fn the_tables_name_every_code_with_its_number() {
    for code in FlowCode::ALL {
        let row = format!("| {} | `{}` |", code.to_u32(), code.name());
        assert!(WIRE.contains(&row), "{row}");
    }
    for code in (0..9).filter_map(SessionCode::from_u64) {
        let row = format!("| {} | {code} |", code.to_u32());
        assert!(WIRE.contains(&row), "{row}");
    }
    let label = std::str::from_utf8(proof::EXPORTER_LABEL).expect("text");
    assert!(WIRE.contains(&format!("`{label}`")));
}
