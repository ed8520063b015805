//! Values whose bytes are not what people read: integers, uuid, duration, big-decimal, float.

use std::borrow::Cow;

use crate::format::Node;

/// A zig-zag integer of variable length at the front, and its length. `None` where the bytes end in
/// it or it has more than 64 bits.
pub(super) fn long(bytes: &[u8]) -> Option<(i64, usize)> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            let decoded = (value >> 1) as i64 ^ -((value & 1) as i64);
            return Some((decoded, at + 1));
        }
    }
    None
}

/// The double with the float's shortest digits, as JSON carries a float: 0.1 is 0.1, and not
/// 0.10000000149011612.
pub(super) fn float(value: f32) -> f64 {
    let exact = f64::from(value);
    let is_whole = value.fract() == 0.0 && value.abs() < 16_777_216.0;
    match value.is_finite() && !is_whole {
        true => value.to_string().parse().unwrap_or(exact),
        false => exact,
    }
}

/// `f81d4fae-7dec-11d0-a765-00a0c91e6bf6` of 16 bytes.
pub(super) fn uuid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Twelve bytes, little endian months, days and milliseconds, in the spelling of Debezium's
/// intervals: `P1Y2M3DT4H5M6.78S`.
pub(super) fn duration(bytes: &[u8]) -> String {
    let part = |at: usize| {
        let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
        part.map_or(0, u32::from_le_bytes)
    };
    let (months, days, millis) = (part(0), part(4), part(8));
    let (seconds, rest) = (millis / 1_000, millis % 1_000);
    let fraction = match rest {
        0 => String::new(),
        _ => format!(".{rest:03}").trim_end_matches('0').to_owned(),
    };
    format!(
        "P{}Y{}M{days}DT{}H{}M{}{fraction}S",
        months / 12,
        months % 12,
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Bytes that hold the unscaled integer with its length, then the scale: as Debezium's struct of a
/// decimal without a scale of its own.
pub(super) fn big_decimal(bytes: &[u8]) -> Option<Node<'_>> {
    let (length, used) = long(bytes)?;
    let (unscaled, rest) = bytes
        .get(used..)?
        .split_at_checked(usize::try_from(length).ok()?)?;
    let (scale, used) = long(rest)?;
    let is_all = used == rest.len();
    is_all.then(|| {
        Node::Object(vec![
            (Cow::Borrowed("scale"), Node::Int(scale)),
            (Cow::Borrowed("value"), Node::Bytes(Cow::Borrowed(unscaled))),
        ])
    })
}
