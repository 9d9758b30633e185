//! What the tests share. Each of them is a crate of its own and uses another part of it.
#![allow(dead_code)]

pub mod server;
