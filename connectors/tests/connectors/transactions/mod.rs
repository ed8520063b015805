//! Transactions over topics: the law on generated histories, and examples with exact bounds.

mod history;
mod law;
mod lost;
mod rig;

use std::sync::Arc;

use connectors::envelope::InTransaction;
use connectors::envelope::table::Delivery;
use connectors::kafka::transactions::assembly::{Arrival, Assembly, Bounds, End, Place, Split};

const WAIT: u64 = 5_000;

/// An assembly of two sources, `app.public.a` and `app.public.b`, with a partition each.
fn pair(bytes: usize) -> Assembly<&'static str> {
    bounded(Bounds {
        wait: WAIT,
        bytes,
        piece: bytes,
        whole: bytes,
    })
}

/// The same with these bounds.
fn bounded(bounds: Bounds) -> Assembly<&'static str> {
    let mut assembly = Assembly::new(bounds);
    for (member, topic) in [(0, "app.public.a"), (1, "app.public.b")] {
        assembly.join(member, topic, 0, false);
        assembly.begin(place(member), 0, Some(0));
        assembly.ready(member);
    }
    assembly
}

fn place(member: u64) -> Place {
    Place {
        member,
        partition: 0,
    }
}

fn arrival(id: &str, order: u64, offset: i64, name: &'static str) -> Arrival<&'static str> {
    let transaction = (!id.is_empty()).then(|| InTransaction {
        id: id.to_owned(),
        total_order: Some(order),
        table_order: Some(order),
    });
    Arrival {
        transaction,
        offset,
        bytes: 100,
        is_keyed: true,
        is_truncate: false,
        message: name,
    }
}

fn end(id: &str, offset: i64, tables: &[(&str, u64)]) -> End {
    let tables = tables.iter();
    End {
        id: id.into(),
        offset,
        tables: tables
            .map(|(table, count)| ((*table).to_owned(), *count))
            .collect(),
    }
}

fn splits(assembly: &mut Assembly<&'static str>) -> Vec<(Arc<str>, Split)> {
    let parted = assembly.splits().into_iter();
    parted.map(|one| (one.id, one.split)).collect()
}

/// What goes on now.
fn steps(assembly: &mut Assembly<&'static str>, now: u64) -> Vec<&'static str> {
    let mut out = Vec::new();
    loop {
        let free = assembly.step(now, &|_, name| match name {
            name if name.starts_with("again") => Delivery::Again,
            name if name.starts_with("overtaken") => Delivery::Overtaken,
            _ => Delivery::First,
        });
        if free.is_empty() {
            return out;
        }
        out.extend(free.into_iter().map(|next| next.message));
    }
}

#[test]
fn events_wait_for_their_transaction_and_others_behind_them() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(0), arrival("7", 1, 0, "a1"), 0);
    assembly.arrive(place(0), arrival("", 0, 1, "a, in none"), 0);
    assembly.arrive(place(1), arrival("", 0, 0, "b, in none"), 0);
    assert_eq!(steps(&mut assembly, 1), ["b, in none"]);
    assembly.told(
        end("7", 3, &[("public.a", 1), ("public.b", 1), ("public.c", 9)]),
        2,
    );
    assert_eq!(steps(&mut assembly, 2), [""; 0]);
    assembly.arrive(place(1), arrival("7", 2, 1, "b1"), 3);
    assert_eq!(steps(&mut assembly, 3), ["a1", "a, in none", "b1"]);
    assert_eq!((assembly.through(), assembly.held_bytes()), (Some(4), 0));
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn transactions_go_on_in_the_order_of_their_ends() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(1), arrival("8", 1, 0, "b of 8"), 0);
    assembly.told(end("7", 1, &[("public.a", 1)]), 0);
    assembly.told(end("8", 3, &[("public.b", 1)]), 0);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assembly.arrive(place(0), arrival("7", 1, 0, "a of 7"), 2);
    assert_eq!(steps(&mut assembly, 2), ["a of 7", "b of 8"]);
}

#[test]
fn an_end_that_does_not_come_is_waited_for_so_long_and_no_longer() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(0), arrival("7", 1, 0, "a1"), 1_000);
    assert_eq!(
        steps(&mut assembly, 1_000 + WAIT),
        [""; 0],
        "nobody has looked"
    );
    assert!(assembly.overdue(1_000 + WAIT).1);
    assembly.told_all(1_000 + WAIT - 1);
    assert_eq!(
        steps(&mut assembly, 1_000 + WAIT),
        [""; 0],
        "too early a look"
    );
    assembly.told_all(1_000 + WAIT);
    assert_eq!(steps(&mut assembly, 1_000 + WAIT), ["a1"]);
    assert_eq!(splits(&mut assembly), [("7".into(), Split::NoEnd)]);
    // What follows of it does not wait, and neither does anybody for its END.
    assembly.arrive(place(1), arrival("7", 2, 0, "b1"), 9_000);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.b", 1)]), 9_000);
    assert_eq!(steps(&mut assembly, 9_000), ["b1"]);
    assert_eq!(
        (splits(&mut assembly), assembly.through()),
        (vec![], Some(2))
    );
}

#[test]
fn a_transaction_topic_that_cannot_be_asked_is_waited_for_longer_and_not_for_ever() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(0), arrival("7", 1, 0, "a1"), 0);
    assert_eq!(steps(&mut assembly, 12 * WAIT - 1), [""; 0]);
    assert_eq!(steps(&mut assembly, 12 * WAIT), ["a1"]);
}

#[test]
fn an_event_that_cannot_come_any_more_is_not_waited_for() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(0), arrival("7", 1, 0, "a of 7"), 0);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.b", 1)]), 0);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    // A later transaction's event stands where it should have been.
    assembly.told(end("8", 3, &[("public.b", 1)]), 2);
    assembly.arrive(place(1), arrival("8", 1, 0, "b of 8"), 2);
    assert_eq!(steps(&mut assembly, 2), ["a of 7", "b of 8"]);
    assert_eq!(splits(&mut assembly), [("7".into(), Split::Missing)]);
}

#[test]
fn an_event_may_come_until_its_partition_was_read_to_its_end_after_the_wait() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(0), arrival("7", 1, 0, "a1"), 0);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.b", 1)]), 0);
    assert_eq!(steps(&mut assembly, 0), [""; 0]);
    assert_eq!(assembly.overdue(WAIT), (vec![place(1)], false));
    // It is written, and not fetched yet: what was asked for earlier says nothing.
    assembly.dry(place(1), WAIT - 1);
    assert_eq!(steps(&mut assembly, 2 * WAIT), [""; 0]);
    assembly.arrive(place(1), arrival("7", 2, 0, "b1"), 2 * WAIT);
    assert_eq!(steps(&mut assembly, 2 * WAIT), ["a1", "b1"]);
    assert_eq!(splits(&mut assembly), []);

    let mut assembly = pair(1 << 20);
    assembly.arrive(place(0), arrival("7", 1, 0, "a1"), 0);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.b", 1)]), 0);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assembly.dry(place(1), WAIT);
    assert_eq!(steps(&mut assembly, WAIT + 1), ["a1"]);
    assert_eq!(splits(&mut assembly), [("7".into(), Split::Missing)]);
}

#[test]
fn what_is_sent_again_neither_waits_nor_counts_twice() {
    let mut assembly = pair(1 << 20);
    // The connector died after its first event, and sends all of it again.
    assembly.arrive(place(0), arrival("7", 1, 0, "a1"), 0);
    assembly.arrive(place(0), arrival("7", 1, 1, "a1, twice"), 0);
    assembly.told(end("7", 1, &[("public.a", 2)]), 0);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assembly.arrive(place(0), arrival("7", 2, 2, "a2"), 2);
    assert_eq!(steps(&mut assembly, 2), ["a1", "a1, twice", "a2"]);
    // Once more, and only its END; then one that was taken before this program's last start.
    assembly.told(end("7", 2, &[("public.a", 2)]), 3);
    assembly.arrive(place(1), arrival("6", 3, 0, "again b of 6"), 3);
    assembly.told(end("6", 3, &[("public.b", 3)]), 3);
    assert_eq!(steps(&mut assembly, 3), ["again b of 6"]);
    assert_eq!(
        (splits(&mut assembly), assembly.through()),
        (vec![], Some(4))
    );
}

#[test]
fn a_transaction_that_is_too_large_goes_on_in_parts() {
    let mut assembly = pair(1_000);
    for order in 1..=12 {
        assembly.arrive(place(0), arrival("7", order, order as i64, "a"), 0);
    }
    assembly.told(end("7", 1, &[("public.a", 20)]), 0);
    assert_eq!(steps(&mut assembly, 1), ["a"; 12]);
    assert_eq!(splits(&mut assembly), [("7".into(), Split::TooLarge)]);
    assembly.arrive(place(0), arrival("7", 13, 13, "rest"), 2);
    assert_eq!(steps(&mut assembly, 2), ["rest"]);
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn partitions_that_run_ahead_are_paused_and_the_one_that_is_lacking_never() {
    let mut assembly = pair(1_000);
    assembly.told(end("7", 1, &[("public.a", 1)]), 0);
    for order in 1..=6 {
        assembly.arrive(place(1), arrival("8", order, order as i64, "b"), 0);
    }
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assert_eq!(
        assembly.paused(1).into_iter().collect::<Vec<_>>(),
        [place(1)]
    );
    assembly.arrive(place(0), arrival("7", 1, 0, "a"), 2);
    assembly.told(end("8", 3, &[("public.b", 6)]), 2);
    assert_eq!(steps(&mut assembly, 2).len(), 7);
    assert!(assembly.paused(2).is_empty());
}

#[test]
fn what_is_paused_is_waited_for_from_when_it_is_read_on() {
    let mut assembly = pair(1_000);
    for order in 1..=6 {
        assembly.arrive(place(0), arrival("7", order, order as i64, "a"), 0);
    }
    assembly.arrive(place(1), arrival("8", 1, 1, "b"), 0);
    assert_eq!(assembly.paused(1).len(), 2);
    // Its END, like the rest of it, may lie where nobody reads.
    assembly.told_all(WAIT);
    assert_eq!(steps(&mut assembly, WAIT), [""; 0]);
    assert_eq!(assembly.paused(WAIT), [place(1)].into());
    assembly.told_all(2 * WAIT - 1);
    assert_eq!(steps(&mut assembly, 2 * WAIT), [""; 0]);
    assembly.told_all(2 * WAIT);
    assert_eq!(steps(&mut assembly, 2 * WAIT), ["a"; 6]);
    assert_eq!(splits(&mut assembly), [("7".into(), Split::NoEnd)]);
    assert!(assembly.paused(3 * WAIT).is_empty());
    assembly.told_all(4 * WAIT - 1);
    assert_eq!(steps(&mut assembly, 4 * WAIT), [""; 0]);
    assembly.told(end("8", 3, &[("public.b", 1)]), 4 * WAIT);
    assert_eq!(steps(&mut assembly, 4 * WAIT), ["b"]);
    assert_eq!(splits(&mut assembly), []);
}

/// An assembly that lets a transaction of more than 500 bytes go on in pieces.
fn in_pieces() -> Assembly<&'static str> {
    bounded(Bounds {
        wait: WAIT,
        bytes: 10_000,
        piece: 500,
        whole: 2_000,
    })
}

fn arrive(assembly: &mut Assembly<&'static str>, orders: std::ops::RangeInclusive<u64>, now: u64) {
    for order in orders {
        assembly.arrive(place(0), arrival("7", order, order as i64, "a"), now);
    }
}

#[test]
fn a_large_transaction_goes_on_in_pieces_before_and_after_its_end() {
    let mut assembly = in_pieces();
    arrive(&mut assembly, 1..=6, 0);
    assert_eq!(steps(&mut assembly, 1), ["a"; 6]);
    assert_eq!(
        (assembly.begun(0), assembly.held_bytes()),
        (Some(("7", 6)), 0)
    );
    arrive(&mut assembly, 7..=8, 2);
    // Another one comes to its end meanwhile: it is visible with this one.
    assembly.arrive(place(1), arrival("6", 1, 0, "b of 6"), 2);
    assembly.told(end("6", 1, &[("public.b", 1)]), 2);
    assert_eq!(steps(&mut assembly, 2), ["b of 6"]);
    assert!(assembly.is_open());
    assembly.told(end("7", 3, &[("public.a", 20), ("public.b", 1)]), 3);
    assert_eq!(steps(&mut assembly, 3), [""; 0]);
    arrive(&mut assembly, 9..=14, 4);
    assert_eq!(steps(&mut assembly, 4), ["a"; 8]);
    assert_eq!(
        (assembly.begun(0), assembly.begun(1)),
        (Some(("7", 14)), Some(("7", 0)))
    );
    assembly.arrive(place(1), arrival("7", 21, 1, "b"), 5);
    assert_eq!(steps(&mut assembly, 5), [""; 0]);
    assert_eq!(assembly.begun(1), Some(("7", 0)), "it did not go on yet");
    arrive(&mut assembly, 15..=20, 6);
    assert_eq!(assembly.step(6, &|_, _| Delivery::First).len(), 7);
    assert!(assembly.take_closed() && !assembly.is_open());
    assert_eq!(assembly.through(), Some(4));
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn pieces_that_went_on_before_a_restart_are_counted() {
    let mut assembly = in_pieces();
    assembly.resume("7", [(0, 18)].into(), 0);
    assembly.told(end("7", 3, &[("public.a", 20)]), 1);
    // Sent again by the connector: it was taken.
    assembly.arrive(place(0), arrival("7", 18, 18, "again"), 1);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assert_eq!(assembly.begun(0), Some(("7", 18)));
    arrive(&mut assembly, 19..=20, 2);
    assert_eq!(steps(&mut assembly, 2), ["again", "a", "a"]);
    assert!(assembly.take_closed());
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn pieces_without_an_end_are_given_up_and_so_are_too_many() {
    let mut assembly = in_pieces();
    arrive(&mut assembly, 1..=6, 0);
    assert_eq!(steps(&mut assembly, 0), ["a"; 6]);
    assert_eq!(assembly.overdue(WAIT), (Vec::new(), true));
    assembly.told_all(WAIT - 1);
    assert_eq!(steps(&mut assembly, WAIT), [""; 0]);
    assert!(assembly.is_open());
    assembly.told_all(WAIT);
    assert_eq!(steps(&mut assembly, WAIT), [""; 0]);
    assert!(assembly.take_closed() && !assembly.is_open());
    assert_eq!(splits(&mut assembly), [("7".into(), Split::NoEnd)]);

    let mut assembly = in_pieces();
    for piece in 0..3 {
        arrive(&mut assembly, piece * 7 + 1..=piece * 7 + 7, piece);
        assert_eq!(steps(&mut assembly, piece), ["a"; 7]);
        assert_eq!(assembly.is_open(), piece < 2);
    }
    assert_eq!(splits(&mut assembly), [("7".into(), Split::TooLarge)]);
}

/// Its END was lost, and what the next one lacks stands behind it: that is read when it was waited for,
/// although more is there than is to wait.
#[test]
fn a_partition_that_the_current_transaction_lacks_is_read_on() {
    let mut assembly = pair(1_000);
    for order in 1..=6 {
        assembly.arrive(place(0), arrival("7", order, order as i64, "a of 7"), 0);
    }
    assembly.told(end("8", 1, &[("public.a", 1)]), 0);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assert_eq!(assembly.paused(1), [place(0)].into());
    assert!(assembly.paused(WAIT).is_empty());
    assembly.arrive(place(0), arrival("8", 1, 7, "a of 8"), WAIT);
    assert_eq!(steps(&mut assembly, WAIT).len(), 7);
    assert_eq!(splits(&mut assembly), [("7".into(), Split::NoEnd)]);
}

#[test]
fn a_source_that_joins_late_shows_what_is_there_and_is_not_waited_for_until_then() {
    let mut assembly = pair(1 << 20);
    assembly.join(2, "app.public.c", 0, true);
    assembly.begin(place(2), 0, Some(2));
    assembly.ready(2);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.c", 1)]), 0);
    assembly.arrive(place(0), arrival("7", 1, 0, "a of 7"), 0);
    assert!(assembly.is_late(2));
    assert_eq!(steps(&mut assembly, 1), ["a of 7"]);
    assembly.arrive(place(2), arrival("6", 1, 0, "c of 6"), 1);
    assembly.arrive(place(2), arrival("7", 2, 1, "c of 7"), 1);
    assert_eq!(steps(&mut assembly, 1), ["c of 6", "c of 7"]);
    // From here on it is one of them.
    assembly.told(end("8", 3, &[("public.a", 1), ("public.c", 1)]), 2);
    assembly.arrive(place(0), arrival("8", 1, 1, "a of 8"), 2);
    assert_eq!(steps(&mut assembly, 2), [""; 0]);
    assembly.arrive(place(2), arrival("8", 2, 2, "c of 8"), 3);
    assert_eq!(steps(&mut assembly, 3), ["a of 8", "c of 8"]);
    assert_eq!(splits(&mut assembly), []);
}

/// Pieces of a later transaction may have gone on in the partition where it comes again: that it has no
/// effect there does not say that its transaction has passed.
#[test]
fn a_truncate_that_comes_again_does_not_say_that_its_transaction_has_passed() {
    let mut assembly = pair(1 << 20);
    let truncate = Arrival {
        is_keyed: false,
        ..arrival("7", 1, 0, "again: truncate")
    };
    assembly.arrive(place(0), truncate, 0);
    assert_eq!(steps(&mut assembly, 0), ["again: truncate"]);
    assembly.arrive(place(0), arrival("7", 2, 1, "a"), 1);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    // One with a key lies where it lay.
    assembly.arrive(place(1), arrival("8", 1, 0, "again: b"), 2);
    assembly.arrive(place(1), arrival("8", 2, 1, "the rest of 8"), 2);
    assert_eq!(steps(&mut assembly, 2), ["again: b", "the rest of 8"]);
    assert_eq!(splits(&mut assembly), []);
}

/// Its END was told before a restart; a later truncate of its table was taken since.
#[test]
fn a_truncate_that_is_sent_again_after_a_restart_splits_nothing() {
    let mut assembly = pair(1 << 20);
    let truncate = |id, offset, name| Arrival {
        is_keyed: false,
        ..arrival(id, 1, offset, name)
    };
    assembly.arrive(place(0), truncate("7", 0, "overtaken: a of 7"), 0);
    assembly.arrive(place(0), arrival("9", 1, 1, "a of 9"), 0);
    assembly.told(end("9", 9, &[("public.a", 1)]), 0);
    assert_eq!(steps(&mut assembly, 1), ["overtaken: a of 7", "a of 9"]);
    assert_eq!(splits(&mut assembly), []);
    // What was never seen of it does split it.
    assembly.arrive(place(0), arrival("7", 2, 2, "more of 7"), 2);
    assert_eq!(steps(&mut assembly, 2), ["more of 7"]);
    assert_eq!(splits(&mut assembly), [("7".into(), Split::Missing)]);
}

/// What a late source took by itself, and what the connector sends again of it, says nothing of the others.
#[test]
fn what_a_late_source_took_alone_has_not_passed_for_the_others() {
    let mut assembly = pair(1 << 20);
    assembly.join(2, "app.public.c", 0, true);
    assembly.begin(place(2), 0, Some(1));
    assembly.ready(2);
    // `again`: taken before, in this run or in one before the source stood with the others.
    for (offset, name) in [(0, "c of 7"), (1, "again: c of 7")] {
        assembly.arrive(place(2), arrival("7", 3, offset, name), 0);
    }
    assert_eq!(steps(&mut assembly, 0), ["c of 7", "again: c of 7"]);
    assembly.arrive(place(0), arrival("7", 1, 0, "a of 7"), 1);
    assert_eq!(steps(&mut assembly, 1), [""; 0], "b of 7 is to come");
    let tables = [("public.a", 1), ("public.b", 1), ("public.c", 1)];
    assembly.told(end("7", 1, &tables), 2);
    assert_eq!(steps(&mut assembly, 2), [""; 0]);
    assembly.arrive(place(1), arrival("7", 2, 0, "b of 7"), 3);
    assert_eq!(steps(&mut assembly, 3), ["a of 7", "b of 7"]);
    assert_eq!(splits(&mut assembly), []);
}

/// A connector dies inside of a transaction and goes far back: more is sent again than may wait, between
/// an event of the transaction and the rest of it.
#[test]
fn what_is_sent_again_inside_of_a_transaction_takes_no_room() {
    let mut assembly = pair(1_000);
    assembly.told(end("7", 1, &[("public.a", 2)]), 0);
    assembly.arrive(place(0), arrival("7", 1, 0, "a"), 0);
    for offset in 1..=100 {
        let id = format!("{}", offset % 5);
        assembly.arrive(place(0), arrival(&id, 1, offset, "again"), 1);
        assert_eq!(steps(&mut assembly, 1), [""; 0]);
        assert_eq!(assembly.held_bytes(), 200);
    }
    assembly.arrive(place(0), arrival("7", 2, 101, "the other"), 2);
    // The last stands for all: what follows it is read next.
    assert_eq!(steps(&mut assembly, 2), ["a", "again", "the other"]);
    assert_eq!(assembly.echoes(), [(0, 99)].into());
    assert_eq!((splits(&mut assembly), assembly.held_bytes()), (vec![], 0));
}

#[test]
fn one_that_waits_behind_another_is_not_given_up_for_it() {
    let mut assembly = pair(1_000);
    // The END of 6 is lost; 7 stands behind it, and more than may wait.
    assembly.arrive(place(0), arrival("6", 1, 0, "a of 6"), 0);
    assembly.told(end("7", 1, &[("public.a", 10)]), 0);
    for order in 1..=10 {
        assembly.arrive(place(0), arrival("7", order, order as i64, "a of 7"), 0);
    }
    assert_eq!(steps(&mut assembly, 1).len(), 11);
    assert_eq!(splits(&mut assembly), [("6".into(), Split::NoEnd)]);
    // One of which nothing is there is split when something comes.
    assembly.told(end("8", 3, &[("public.b", 1)]), 2);
    assert_eq!(steps(&mut assembly, 2), [""; 0]);
    assembly.dry(place(1), 2 + WAIT);
    assert_eq!(steps(&mut assembly, 2 + WAIT), [""; 0]);
    assert_eq!(
        (assembly.through(), splits(&mut assembly)),
        (Some(4), vec![])
    );
    assembly.arrive(place(1), arrival("8", 1, 0, "b of 8"), 9_000);
    assert_eq!(steps(&mut assembly, 9_000), ["b of 8"]);
    assert_eq!(splits(&mut assembly), [("8".into(), Split::Missing)]);
}

#[test]
fn a_topic_that_was_renamed_is_told_and_not_waited_for() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(0), arrival("7", 1, 0, "a"), 0);
    assembly.told(end("7", 1, &[("public.other", 1), ("public.b", 1)]), 0);
    assembly.arrive(place(1), arrival("7", 2, 0, "b"), 0);
    assert_eq!(steps(&mut assembly, 1), ["a", "b"]);
    assert_eq!(assembly.strangers().into_iter().collect::<Vec<_>>(), [0]);
}

#[test]
fn an_end_that_was_passed_over_is_not_waited_for() {
    let mut assembly = pair(1 << 20);
    // The END of 6 was lost; that of 7 is told, and 7 stands behind 6.
    assembly.arrive(place(0), arrival("6", 1, 0, "a of 6"), 0);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.b", 1)]), 0);
    assert_eq!(
        steps(&mut assembly, 1),
        [""; 0],
        "it may still be a later one"
    );
    assembly.arrive(place(0), arrival("7", 1, 1, "a of 7"), 2);
    assert_eq!(steps(&mut assembly, 2), ["a of 6"]);
    assert_eq!(splits(&mut assembly), [("6".into(), Split::NoEnd)]);
    assembly.arrive(place(1), arrival("7", 2, 0, "b of 7"), 3);
    assert_eq!(steps(&mut assembly, 3), ["a of 7", "b of 7"]);
    // 8 is in flight when the connector goes back to 7 and sends it again: 8 is told later.
    assembly.arrive(place(0), arrival("8", 1, 2, "a of 8"), 4);
    assembly.arrive(place(0), arrival("7", 1, 3, "a of 7, twice"), 4);
    assembly.told(end("7", 5, &[("public.a", 1), ("public.b", 1)]), 4);
    assert_eq!(steps(&mut assembly, 4), [""; 0]);
    assembly.arrive(place(0), arrival("8", 1, 4, "a of 8, twice"), 5);
    assembly.told(end("8", 7, &[("public.a", 1)]), 5);
    assert_eq!(
        steps(&mut assembly, 5),
        ["a of 8", "a of 7, twice", "a of 8, twice"]
    );
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn one_wait_is_enough_for_a_backlog_of_which_events_are_missing() {
    let mut assembly = pair(1 << 20);
    for id in 0..200 {
        let name = id.to_string();
        assembly.arrive(place(0), arrival(&name, 1, id, "a"), id as u64);
        assembly.told(
            end(&name, id, &[("public.a", 1), ("public.b", 1)]),
            id as u64,
        );
    }
    let (mut now, mut passed) = (200, 0);
    while passed < 200 {
        now += 100;
        assert!(now < 2 * WAIT, "{passed} after {now} ms");
        passed += steps(&mut assembly, now).len();
        for place in assembly.overdue(now).0 {
            assembly.dry(place, now);
        }
    }
    assert_eq!(splits(&mut assembly).len(), 200);
}

#[test]
fn what_waits_of_a_partition_that_is_given_up_goes_on_with_its_transaction() {
    let mut assembly = pair(1 << 20);
    assembly.arrive(place(1), arrival("7", 2, 0, "b of 7"), 0);
    assert!(assembly.close(place(1)));
    assert_eq!(assembly.drained(), []);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.b", 1)]), 1);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assembly.arrive(place(0), arrival("7", 1, 0, "a of 7"), 2);
    assert_eq!(steps(&mut assembly, 2), ["a of 7", "b of 7"]);
    assert_eq!(
        (assembly.drained(), splits(&mut assembly)),
        (vec![place(1)], vec![])
    );
    assert!(!assembly.close(place(1)), "it is gone");
    // Nothing more comes of it, and nobody waits.
    assembly.told(end("8", 3, &[("public.a", 1), ("public.b", 1)]), 3);
    assembly.arrive(place(0), arrival("8", 1, 1, "a of 8"), 3);
    assert_eq!(steps(&mut assembly, 3), ["a of 8"]);
    let parted = assembly.splits();
    assert_eq!(
        (parted[0].split, &*parted[0].lacks),
        (Split::Missing, &[(1, 0, 1)][..])
    );
}

#[test]
fn a_late_source_needs_nothing_that_was_told_before_it_came() {
    let mut assembly = pair(1 << 20);
    assembly.told(end("7", 1, &[("public.a", 1), ("public.c", 1)]), 0);
    assembly.join(2, "app.public.c", 0, true);
    assembly.begin_from(2, 2);
    // Nobody could say where it ends: it is read to its end.
    assembly.begin(place(2), 0, None);
    assembly.ready(2);
    assembly.arrive(place(2), arrival("7", 2, 0, "c of 7"), 1);
    assert_eq!(steps(&mut assembly, 1), ["c of 7"]);
    assert!(assembly.is_late(2), "there may be more");
    assembly.reached(place(2));
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assert_eq!(
        (assembly.is_late(2), assembly.caught_up()),
        (false, vec![2])
    );
    assembly.arrive(place(2), arrival("8", 1, 1, "c of 8"), 2);
    assembly.arrive(place(0), arrival("7", 1, 0, "a of 7"), 2);
    assert_eq!(steps(&mut assembly, 2), ["a of 7"]);
    assembly.told(end("8", 3, &[("public.c", 1)]), 3);
    assert_eq!(steps(&mut assembly, 3), ["c of 8"]);
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn a_transaction_topic_that_was_made_again_is_read_from_its_beginning() {
    let mut assembly = pair(1 << 20);
    assembly.began(90);
    assembly.told(end("7", 99, &[("public.a", 1)]), 0);
    assembly.begin_anew();
    assembly.began(0);
    assert_eq!(assembly.through(), Some(0));
    assembly.arrive(place(0), arrival("7", 1, 0, "a of 7"), 1);
    assert_eq!(steps(&mut assembly, 1), ["a of 7"]);
    assembly.told(end("8", 1, &[("public.b", 1)]), 2);
    assembly.arrive(place(1), arrival("8", 1, 0, "b of 8"), 2);
    assert_eq!(steps(&mut assembly, 2), ["b of 8"]);
    assert_eq!(
        (assembly.through(), splits(&mut assembly)),
        (Some(2), vec![])
    );
}

#[test]
fn every_source_says_what_its_transaction_topic_waits_for() {
    let mut rig = rig::Rig::new(Bounds {
        wait: WAIT,
        bytes: 1_000,
        piece: 1_000,
        whole: 1_000,
    });
    rig.join(0);
    assert_eq!(rig.waits(0), None);
    let reason = "TRANSACTION TOPIC 'app.transaction' does not exist".to_owned();
    rig.group.waits(Some(reason.clone()));
    rig.join(1);
    assert_eq!(
        [rig.waits(0), rig.waits(1)],
        [Some(reason.clone()), Some(reason)]
    );
    rig.group.waits(None);
    assert_eq!([rig.waits(0), rig.waits(1)], [None, None]);
}
