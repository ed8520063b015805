//! Places in the logs of MySQL, SQL Server and MongoDB, from the `source` block.
//!
//! Sources: Debezium 3.3, `documentation/modules/ROOT/pages/connectors/` mysql, sqlserver, mongodb; for
//! MongoDB's time 3.4, `SourceInfo.timestamp`. A place that does not fit is none, and then the offset is the
//! only order.

use engine::model::ContentHash;

use crate::envelope::order::{BINLOG_BITS, LogKind, LogPosition};
use crate::format::Node;

/// `file` (`binlog.000003`), `pos`, `row`; `gtid` (`uuid:23`, MariaDB `0-1-270`) and the `server_id` of the
/// server that wrote it first.
pub(super) fn binlog(source: &Node<'_>) -> Option<LogPosition> {
    let (base, number) = source.get("file")?.as_str()?.rsplit_once('.')?;
    let number: u64 = number.parse().ok()?;
    let pos = source.get("pos")?.as_u64()?;
    if number >> (64 - BINLOG_BITS) != 0 || pos >> BINLOG_BITS != 0 {
        return None;
    }
    let gtid = source.some("gtid").and_then(Node::as_str);
    let server = source.get("server_id").and_then(Node::as_u64).unwrap_or(0);
    let (log, commit) = match gtid {
        Some(gtid) => {
            let (domain, count) = gtid.rsplit_once([':', '-'])?;
            // Members of a group take numbers of one UUID in blocks.
            (
                name(base, &format!("{domain} {server}")),
                count.parse().ok()?,
            )
        }
        None => (name(base, &server.to_string()), number),
    };
    Some(LogPosition {
        commit,
        lsn: number << BINLOG_BITS | pos,
        index: source.get("row").and_then(Node::as_u64).unwrap_or(0),
        kind: LogKind::Binlog(log),
        at_ms: at_ms(source),
    })
}

/// `ts_ms`
pub(super) fn at_ms(source: &Node<'_>) -> u64 {
    source.get("ts_ms").and_then(Node::as_u64).unwrap_or(0)
}

/// A number for a log's name, the same in every run.
fn name(base: &str, server: &str) -> u64 {
    let hash = ContentHash::of(format!("{base}\n{server}").as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.0[..8]);
    u64::from_le_bytes(bytes)
}

/// `commit_lsn`, `change_lsn` (`00000027:00000758:0005`), `event_serial_no`.
pub(super) fn sql_server(source: &Node<'_>) -> Option<LogPosition> {
    let lsn = |name| log_sequence_number(source.some(name)?.as_str()?);
    Some(LogPosition {
        commit: lsn("commit_lsn")?,
        lsn: lsn("change_lsn")?,
        index: source.get("event_serial_no")?.as_u64()?,
        kind: LogKind::Commit,
        at_ms: at_ms(source),
    })
}

/// Virtual log file, block and slot as one number: 22, 26 and 16 bits, far above any log's.
fn log_sequence_number(text: &str) -> Option<u64> {
    let mut parts = text.split(':').map(|part| u64::from_str_radix(part, 16));
    let (file, block, slot) = (
        parts.next()?.ok()?,
        parts.next()?.ok()?,
        parts.next()?.ok()?,
    );
    let fits = file < 1 << 22 && block < 1 << 26 && slot < 1 << 16;
    (fits && parts.next().is_none()).then_some(file << 42 | block << 16 | slot)
}

/// `ts_ms` in seconds and `ord`: the time of the cluster's log. From Debezium 3.4 on `ts_ms` is `wallTime`,
/// and the cluster's seconds are not sent.
pub(super) fn mongodb(source: &Node<'_>) -> Option<LogPosition> {
    let millis = source.get("ts_ms")?.as_u64()?;
    let wall = source.some("wallTime").and_then(Node::as_u64);
    if millis % 1_000 != 0 || wall == Some(millis) {
        return None;
    }
    let seconds = millis / 1_000;
    let order = source.get("ord")?.as_u64()?;
    let fits = seconds < 1 << 32 && order < 1 << 32;
    fits.then_some(LogPosition {
        lsn: seconds << 32 | order,
        kind: LogKind::Shared,
        at_ms: millis,
        ..LogPosition::default()
    })
}
