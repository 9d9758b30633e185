//! Ports that stay reserved for a server until it is dropped, even while it is killed.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    ops::Range,
};

/// A port number of the loopback interface.
///
/// A killed server needs the same port when it is restarted. Until then the port stays free:
/// - Other tests do not take it, because the number is also bound as a *UDP* port, which no server
///   here uses and which the kernel frees when the test dies.
/// - Outgoing connections do not take it, because the kernel gives them higher numbers. Otherwise a
///   client that keeps trying to reach the killed server would eventually connect to itself.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _reservation: UdpSocket,
}

impl Port {
    pub fn reserve() -> Self {
        for _ in 0..1000 {
            let number = RANGE.start + (random() % u64::from(RANGE.end - RANGE.start)) as u16;
            let address = (Ipv4Addr::LOCALHOST, number);
            let Ok(reservation) = UdpSocket::bind(address) else { continue };
            if TcpListener::bind(address).is_ok() {
                return Self { number, _reservation: reservation };
            }
        }
        panic!("no port in {RANGE:?} is free");
    }
}

/// Returns a random number that differs between processes: tests that start together would
/// otherwise try the same ports.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// On Linux the ports of outgoing connections begin at 32768 (`net.ipv4.ip_local_port_range`).
const RANGE: Range<u16> = 20000..32768;
