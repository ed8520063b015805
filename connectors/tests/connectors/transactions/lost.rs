//! What a connector that is killed had not sent: of each partition the last, of one more than of another.
//! What has no key (a truncate) then comes again in any partition.

use connectors::kafka::transactions::assembly::{Arrival, Assembly, Place, Split};

use super::{WAIT, arrival, end, pair, place, splits, steps};

/// What is written at one time has come to all partitions.
const TOGETHER: u64 = 1_000;

const OTHER: Place = Place {
    member: 0,
    partition: 1,
};

/// Two sources; the first one has two partitions.
fn three() -> Assembly<&'static str> {
    let mut assembly = pair(1 << 20);
    assembly.begin(OTHER, 0, Some(0));
    assembly
}

fn truncate(id: &str, order: u64, offset: i64) -> Arrival<&'static str> {
    Arrival {
        is_keyed: false,
        is_truncate: true,
        ..arrival(id, order, offset, "truncate")
    }
}

#[test]
fn a_truncate_comes_again_behind_a_later_change_of_its_transaction() {
    let mut assembly = three();
    assembly.told(end("7", 1, &[("public.a", 3)]), 0);
    assembly.arrive(place(0), arrival("7", 2, 0, "second"), 0);
    assembly.arrive(OTHER, arrival("7", 3, 0, "third"), 0);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assembly.arrive(OTHER, truncate("7", 1, 1), 2);
    // The partition that lost it is not further than it when it goes on.
    assert_eq!(steps(&mut assembly, 2), ["third", "truncate", "second"]);
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn a_truncate_goes_before_later_transactions_and_has_its_turn() {
    let mut assembly = three();
    assembly.told(end("7", 1, &[("public.a", 2)]), 0);
    assembly.told(end("8", 3, &[("public.a", 1)]), 0);
    assembly.arrive(OTHER, arrival("8", 1, 0, "a of 8"), 0);
    assembly.arrive(OTHER, truncate("7", 1, 1), 0);
    assert_eq!(steps(&mut assembly, 1), [""; 0]);
    assembly.arrive(place(0), arrival("7", 2, 0, "a of 7"), 2);
    let whole = ["truncate", "a of 7", "a of 8", "truncate"];
    assert_eq!(steps(&mut assembly, 2), whole);
    assert_eq!((splits(&mut assembly), assembly.held_bytes()), (vec![], 0));
}

/// A transaction of a truncate alone, which was lost: both partitions have shown what is later.
fn overtaken() -> Assembly<&'static str> {
    let mut assembly = three();
    assembly.told(end("7", 1, &[("public.a", 1), ("public.b", 1)]), 0);
    assembly.told(end("8", 3, &[("public.a", 2)]), 0);
    assembly.arrive(place(1), arrival("7", 2, 0, "b of 7"), 0);
    for place in [place(0), OTHER] {
        assembly.arrive(place, arrival("8", 1, 0, "a of 8"), 0);
    }
    assert_eq!(steps(&mut assembly, 0), [""; 0]);
    assert_eq!(assembly.overdue(TOGETHER - 1), (vec![], false));
    assert_eq!(assembly.overdue(TOGETHER), (vec![place(0), OTHER], false));
    assembly
}

fn told_again(assembly: &mut Assembly<&'static str>) {
    assembly.told(end("7", 5, &[("public.a", 1), ("public.b", 1)]), 1_500);
    assert_eq!(steps(assembly, 1_500), [""; 0]);
}

fn is_missing(assembly: &mut Assembly<&'static str>, now: u64) {
    assert_eq!(steps(assembly, now)[0], "b of 7");
    assert_eq!(splits(assembly)[0], ("7".into(), Split::Missing));
}

#[test]
fn a_truncate_is_waited_for_where_all_partitions_have_shown_later_ones() {
    let mut assembly = overtaken();
    for place in [place(0), OTHER] {
        assembly.dry(place, TOGETHER - 1);
    }
    assert_eq!(steps(&mut assembly, 2 * TOGETHER - 1), [""; 0]);
    assembly.arrive(OTHER, truncate("7", 1, 1), 2 * TOGETHER - 1);
    let seen = steps(&mut assembly, 2 * TOGETHER - 1);
    assert_eq!(seen[..2], ["truncate", "b of 7"]);
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn it_is_waited_for_longer_while_a_connector_tells_again() {
    let mut assembly = overtaken();
    told_again(&mut assembly);
    assert_eq!(steps(&mut assembly, 3 * WAIT), [""; 0]);
    assembly.arrive(OTHER, truncate("7", 1, 1), 3 * WAIT);
    assert_eq!(steps(&mut assembly, 3 * WAIT)[..2], ["truncate", "b of 7"]);
    assert_eq!(splits(&mut assembly), []);
}

#[test]
fn what_was_not_written_is_not_waited_for() {
    let mut assembly = overtaken();
    for place in [place(0), OTHER] {
        assembly.dry(place, TOGETHER);
    }
    is_missing(&mut assembly, TOGETHER);
    // Or, where nobody says what was written, not for long.
    let mut assembly = overtaken();
    assert_eq!(steps(&mut assembly, 2 * TOGETHER - 1), [""; 0]);
    is_missing(&mut assembly, 2 * TOGETHER);
}

#[test]
fn what_is_not_told_again_is_not_waited_for_for_ever() {
    let mut assembly = overtaken();
    told_again(&mut assembly);
    let both = vec![place(0), OTHER];
    assert_eq!(assembly.overdue(1_500 + TOGETHER).0, both);
    for place in both {
        assembly.dry(place, 1_500 + TOGETHER);
    }
    is_missing(&mut assembly, 1_500 + TOGETHER);
    let mut assembly = overtaken();
    told_again(&mut assembly);
    assert_eq!(steps(&mut assembly, 12 * WAIT - 1), [""; 0]);
    is_missing(&mut assembly, 12 * WAIT);
}

/// ENDs are lost, too: they are told for the first time when the connector has begun again.
#[test]
fn a_truncate_whose_end_was_lost_is_waited_for() {
    let mut assembly = three();
    assembly.told(end("6", 1, &[]), 0);
    assembly.arrive(OTHER, arrival("8", 1, 0, "a of 8"), 0);
    assert_eq!(steps(&mut assembly, 0), [""; 0]);
    assembly.told(end("6", 3, &[]), 3_000);
    assembly.told(end("7", 5, &[("public.a", 1), ("public.b", 1)]), 3_000);
    assembly.told(end("8", 7, &[("public.a", 2)]), 3_000);
    assembly.arrive(place(0), arrival("8", 2, 0, "more of 8"), 3_000);
    assembly.arrive(place(1), arrival("7", 2, 0, "b of 7"), 3_000);
    assert_eq!(steps(&mut assembly, 3_000 + WAIT), [""; 0]);
    assembly.arrive(OTHER, truncate("7", 1, 1), 3_000 + WAIT);
    let seen = steps(&mut assembly, 3_000 + WAIT);
    assert_eq!(seen[..2], ["truncate", "b of 7"]);
    assert_eq!(splits(&mut assembly), []);
}
