//! Carries commands to workers, in one order for all.
//!
//! In one process: a channel a worker and an unpark. Over several processes: worker 0 of the
//! leading process feeds a resident dataflow that broadcasts; a single sender keeps one order on
//! every receiver (timely's own `Sequencer` may order ties differently on two workers).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::thread::Thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use timely::dataflow::InputHandle;
use timely::dataflow::operators::vec::Broadcast;
use timely::dataflow::operators::{Input, Inspect};
use timely::worker::Worker;

use super::command::Command;
use super::program::Program;

/// The commands of a program.
pub(super) type CommandOf<P> =
    Command<<P as Program>::Definition, <P as Program>::Question, <P as Program>::Operation>;

/// The sequencer's end: sends to every worker.
pub(super) struct CommandSender<P: Program> {
    senders: Vec<Sender<Arc<CommandOf<P>>>>,
    threads: Arc<Mutex<Vec<Option<Thread>>>>,
    /// Worker 0 alone takes commands and broadcasts them.
    is_cluster: bool,
}

/// What the local workers share to find their receivers.
pub(super) struct CommandReceivers<P: Program> {
    receivers: Vec<Receiver<Arc<CommandOf<P>>>>,
    threads: Arc<Mutex<Vec<Option<Thread>>>>,
}

/// A bus for `local` workers of this process.
pub(super) fn command_bus<P: Program>(
    local: usize,
    is_cluster: bool,
) -> (CommandSender<P>, CommandReceivers<P>) {
    let (senders, receivers) = (0..local).map(|_| unbounded()).unzip();
    let threads = Arc::new(Mutex::new(vec![None; local]));
    (
        CommandSender {
            senders,
            threads: Arc::clone(&threads),
            is_cluster,
        },
        CommandReceivers { receivers, threads },
    )
}

impl<P: Program> CommandSender<P> {
    /// Sends to all workers and wakes them.
    pub(super) fn send(&self, command: CommandOf<P>) {
        let receivers = if self.is_cluster {
            1
        } else {
            self.senders.len()
        };
        let command = Arc::new(command);
        // The last one gets ours: a worker that has a command alone moves its rows.
        let commands = std::iter::repeat_n(command, receivers);
        for (sender, command) in self.senders.iter().zip(commands) {
            // A worker that is gone has panicked; the process is about to end.
            let _ = sender.send(command);
        }
        self.wake();
    }

    /// Wakes parked workers.
    pub(super) fn wake(&self) {
        let threads = self.threads.lock().expect("no panic while held");
        threads.iter().flatten().for_each(Thread::unpark);
    }
}

/// A worker's end.
pub(super) enum CommandStream<P: Program> {
    /// One process: straight from the sequencer.
    Local(Receiver<Arc<CommandOf<P>>>),
    /// Several processes: through the broadcasting dataflow.
    Cluster {
        /// Commands that arrived.
        queue: Rc<RefCell<VecDeque<Arc<CommandOf<P>>>>>,
        /// Feeds the broadcast; used on worker 0 only.
        input: InputHandle<u64, timely::container::CapacityContainerBuilder<Vec<Vec<u8>>>>,
        /// From the sequencer; on worker 0 of the leading process only.
        leader: Option<Receiver<Arc<CommandOf<P>>>>,
        /// Epoch of the next command.
        epoch: u64,
    },
}

impl<P: Program> CommandStream<P> {
    /// The stream of this worker. `local` counts the workers of one process.
    pub(super) fn new(worker: &mut Worker, receivers: &CommandReceivers<P>) -> Self {
        let local = receivers.receivers.len();
        let (index, peers) = (worker.index(), worker.peers());
        receivers.threads.lock().expect("no panic while held")[index % local] =
            Some(std::thread::current());
        let receiver = receivers.receivers[index % local].clone();
        if peers == local {
            return CommandStream::Local(receiver);
        }
        let queue = Rc::new(RefCell::new(VecDeque::new()));
        let arrived = Rc::clone(&queue);
        let input = worker.dataflow_named("Commands", |scope| {
            let (input, stream) = scope.new_input::<Vec<Vec<u8>>>();
            stream.broadcast().inspect(move |bytes| {
                let command = bincode::serde::decode_from_slice(bytes, bincode::config::standard())
                    .expect("a command that worker 0 encoded")
                    .0;
                arrived.borrow_mut().push_back(Arc::new(command));
            });
            input
        });
        CommandStream::Cluster {
            queue,
            input,
            leader: (index == 0).then_some(receiver),
            epoch: 0,
        }
    }

    /// The next command, if one has arrived.
    pub(super) fn next(&mut self) -> Option<Arc<CommandOf<P>>> {
        match self {
            CommandStream::Local(receiver) => receiver.try_recv().ok(),
            CommandStream::Cluster {
                queue,
                input,
                leader,
                epoch,
            } => {
                for command in leader.iter().flat_map(Receiver::try_iter) {
                    let bytes =
                        bincode::serde::encode_to_vec(&*command, bincode::config::standard())
                            .expect("commands are plain values");
                    input.send(bytes);
                    *epoch += 1;
                    input.advance_to(*epoch);
                }
                queue.borrow_mut().pop_front()
            }
        }
    }

    /// Whether a command waits: then the worker must not park.
    pub(super) fn is_waiting(&self) -> bool {
        match self {
            CommandStream::Local(receiver) => !receiver.is_empty(),
            CommandStream::Cluster { queue, leader, .. } => {
                !queue.borrow().is_empty() || leader.as_ref().is_some_and(|r| !r.is_empty())
            }
        }
    }
}
