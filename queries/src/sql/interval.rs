//! Durations: PostgreSQL's interval texts with a fixed length: `1 hour`, `1 hour 30 minutes`,
//! `01:30:00`, `2.5 seconds`. Months and years have no fixed length and are refused.

/// Units by name, microseconds.
const UNITS: [(&[&str], u64); 7] = [
    (&["microsecond", "microseconds", "us", "usec", "usecs"], 1),
    (
        &["millisecond", "milliseconds", "ms", "msec", "msecs"],
        1_000,
    ),
    (&["second", "seconds", "sec", "secs", "s"], 1_000_000),
    (&["minute", "minutes", "min", "mins", "m"], 60_000_000),
    (&["hour", "hours", "hr", "hrs", "h"], 3_600_000_000),
    (&["day", "days", "d"], 86_400_000_000),
    (&["week", "weeks", "w"], 604_800_000_000),
];

/// Reads a duration, in microseconds. The error says what is wrong with the text.
pub(super) fn parse_micros(text: &str) -> Result<u64, String> {
    let spaced = separate(text);
    let mut words = spaced.split_whitespace().peekable();
    if words.peek().is_none() {
        return Err("it is empty".to_owned());
    }
    let mut total = 0u64;
    while let Some(word) = words.next() {
        let micros = if word.contains(':') {
            clock(word)?
        } else {
            let unit = words
                .next()
                .ok_or_else(|| format!("\"{word}\" has no unit"))?;
            scaled(word, unit_micros(unit)?)?
        };
        total = total.checked_add(micros).ok_or("it is too long")?;
    }
    Ok(total)
}

/// A duration in the largest unit that divides it: what normalised statements show.
pub(super) fn format_micros(micros: u64) -> String {
    let (names, unit) = UNITS
        .iter()
        .rev()
        .filter(|(names, _)| names[0] != "week")
        .find(|(_, unit)| micros > 0 && micros.is_multiple_of(*unit))
        .copied()
        .unwrap_or(UNITS[2]);
    let count = micros / unit;
    format!("{count} {}", if count == 1 { names[0] } else { names[1] })
}

/// A space between a number and its unit: `90s`.
fn separate(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut last = ' ';
    for c in text.chars() {
        if c.is_alphabetic() && last.is_ascii_digit() {
            out.push(' ');
        }
        out.push(c);
        last = c;
    }
    out
}

fn unit_micros(unit: &str) -> Result<u64, String> {
    let folded = unit.to_lowercase();
    if ["month", "months", "mon", "mons", "year", "years", "y"].contains(&&*folded) {
        return Err(format!("\"{unit}\" has no fixed length; count days"));
    }
    let found = UNITS.iter().find(|(names, _)| names.contains(&&*folded));
    found
        .map(|(_, micros)| *micros)
        .ok_or_else(|| format!("\"{unit}\" is not a unit of time"))
}

/// `number × unit`, exact to the microsecond for up to nine decimals.
fn scaled(number: &str, unit: u64) -> Result<u64, String> {
    let bad = || format!("\"{number}\" is not a positive number");
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if number.is_empty()
        || number == "."
        || !is_digits(whole)
        || !is_digits(fraction)
        || fraction.len() > 9
    {
        return Err(bad());
    }
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
    let power = 10u128.pow(u32::try_from(fraction.len()).expect("at most nine"));
    let micros = digits
        .checked_mul(u128::from(unit))
        .ok_or("it is too long")?
        / power;
    u64::try_from(micros).map_err(|_| "it is too long".to_owned())
}

/// `HH:MM[:SS[.ffffff]]`
fn clock(word: &str) -> Result<u64, String> {
    let parts: Vec<&str> = word.split(':').collect();
    if !(2..=3).contains(&parts.len()) {
        return Err(format!("\"{word}\" is not HH:MM:SS"));
    }
    let units = [3_600_000_000, 60_000_000, 1_000_000];
    let mut total = 0u64;
    for (part, unit) in parts.iter().zip(units) {
        total = total
            .checked_add(scaled(part, unit)?)
            .ok_or("it is too long")?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read_exactly() {
        let cases = [
            ("1 hour", 3_600_000_000),
            ("1 hour 30 minutes", 5_400_000_000),
            ("01:30:00", 5_400_000_000),
            ("90s", 90_000_000),
            ("2.5 seconds", 2_500_000),
            ("0 seconds", 0),
            ("1 week", 604_800_000_000),
        ];
        for (text, micros) in cases {
            assert_eq!(parse_micros(text), Ok(micros), "{text}");
            assert_eq!(parse_micros(&format_micros(micros)), Ok(micros), "{text}");
        }
        for bad in [
            "",
            "1",
            "hour",
            "1 month",
            "-1 hour",
            "1 moon",
            "1:2:3:4",
            "99999999999999 weeks",
        ] {
            assert!(parse_micros(bad).is_err(), "{bad}");
        }
    }
}
