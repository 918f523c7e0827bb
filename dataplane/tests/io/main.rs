//! What every backend of the io seam must do, tried on each: bytes exact, ends told as they
//! happened, nothing lost, nothing late.

#![expect(clippy::unwrap_used, reason = "a test ends where something fails")]

/// Tries each test on each backend, at a UDP socket of the address that stands in front.
macro_rules! on_every_backend {
    ($($address:ident: $($test:ident),+;)+) => {
        mod poll {
            $($(#[test]
            fn $test() {
                let address = crate::driver::$address();
                let udp = underpass_dataplane::io::udp::bind(address, false).unwrap();
                let address = udp.address();
                let io = underpass_dataplane::io::Poll::new(udp).unwrap();
                super::$test(crate::driver::Driver::new(io, address));
            })+)+
        }
        #[cfg(target_os = "linux")]
        mod ring {
            $($(#[test]
            fn $test() {
                let address = crate::driver::$address();
                let udp = underpass_dataplane::io::udp::bind(address, false).unwrap();
                let address = udp.address();
                let io = underpass_dataplane::io::Ring::new(udp).unwrap();
                super::$test(crate::driver::Driver::new(io, address));
            })+)+
        }
    };
}

mod bytes;
mod datagrams;
mod driver;
mod ends;
mod quiet;
mod sockets;
mod wakes;
