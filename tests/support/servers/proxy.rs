//! A TCP proxy whose cable can be pulled.
//!
//! **Idea.** It listens on a loopback port and forwards to another. `cut` closes every connection
//! and refuses new ones; `freeze` keeps connections open and lets nothing through, as a network does
//! that silently drops packets; `mend` ends both.
//!
//! **Limits.** Frozen bytes are delivered after `mend`; a connection that was cut stays closed.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq)]
enum Cable {
    Whole,
    Frozen,
    Cut,
    /// The proxy has been dropped.
    Gone,
}

struct State {
    cable: Mutex<Cable>,
    changed: Condvar,
    /// Both ends of every connection.
    open: Mutex<BTreeMap<u64, [TcpStream; 2]>>,
    next: AtomicU64,
}

/// A forwarded port.
pub struct Proxy {
    /// The port to connect to instead.
    pub port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Forwards a free loopback port to `target`.
    ///
    /// # Panics
    /// When no port is free.
    pub fn to(target: u16) -> Proxy {
        let (listener, port) = super::listen();
        let state = Arc::new(State {
            cable: Mutex::new(Cable::Whole),
            changed: Condvar::new(),
            open: Mutex::new(BTreeMap::new()),
            next: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                match shared.cable() {
                    Cable::Gone => return,
                    Cable::Cut => drop(client),
                    Cable::Whole | Cable::Frozen => State::connect(&shared, client, target),
                }
            }
        });
        Proxy { port, state }
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Closes all connections and lets no new one through.
    pub fn cut(&self) {
        self.state.set(Cable::Cut);
        self.state.close_all();
    }

    /// Lets nothing through; connections stay open.
    pub fn freeze(&self) {
        self.state.set(Cable::Frozen);
    }

    /// Forwards again.
    pub fn mend(&self) {
        self.state.set(Cable::Whole);
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.state.open.lock().expect("no panic inside").len()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.set(Cable::Gone);
        self.state.close_all();
        // Wakes the listening thread, which sees that it is over.
        let address = SocketAddr::from(([127, 0, 0, 1], self.port));
        let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
    }
}

impl State {
    fn cable(&self) -> Cable {
        *self.cable.lock().expect("no panic inside")
    }

    fn set(&self, cable: Cable) {
        *self.cable.lock().expect("no panic inside") = cable;
        self.changed.notify_all();
    }

    fn close_all(&self) {
        let open = std::mem::take(&mut *self.open.lock().expect("no panic inside"));
        for end in open.values().flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Two threads, one for each direction. A target that is down closes the client's connection.
    fn connect(shared: &Arc<State>, client: TcpStream, target: u16) {
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let copies = [
            client.try_clone(),
            server.try_clone(),
            client.try_clone(),
            server.try_clone(),
        ];
        let [Ok(client2), Ok(server2), Ok(client3), Ok(server3)] = copies else {
            return;
        };
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let mut open = shared.open.lock().expect("no panic inside");
        open.insert(id, [client3, server3]);
        drop(open);
        for (from, to) in [(client, server), (server2, client2)] {
            let shared = Arc::clone(shared);
            std::thread::spawn(move || {
                shared.pump(from, to);
                shared.open.lock().expect("no panic inside").remove(&id);
            });
        }
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let cable = self.cable.lock().expect("no panic inside");
            let cable = self
                .changed
                .wait_while(cable, |cable| *cable == Cable::Frozen)
                .expect("no panic inside");
            let is_whole = *cable == Cable::Whole;
            drop(cable);
            if !is_whole || to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}
