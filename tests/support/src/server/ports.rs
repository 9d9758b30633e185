//! Ports that stay ours from before a server binds them until it is gone for good, also while it is killed.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    ops::Range,
};

/// A port number of the loopback interface.
///
/// A killed server has its port back when it is restarted. For that nobody may take it meanwhile:
/// - other tests don't, because a reserved number is bound as a *UDP* port, which no server here uses and which the
///   kernel frees when the test dies;
/// - connections don't, because the number lies below those that the kernel gives to outgoing ones. With such a number a
///   client that keeps trying to reach the killed server would sooner or later be connected to itself.
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

/// Another number in each process, or tests that start at once would all look at the same ports.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Linux takes the ports of outgoing connections from 32768 on (`net.ipv4.ip_local_port_range`).
const RANGE: Range<u16> = 20000..32768;
